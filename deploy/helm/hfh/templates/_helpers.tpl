{{- define "hfh.name" -}}
{{- if contains "hfh" .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-hfh" (.Release.Name | trunc 48 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "hfh.selector" -}}
app.kubernetes.io/name: hfh
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "hfh.labels" -}}
{{ include "hfh.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "hfh.keysSecret" -}}
{{- if .Values.keys.existingSecret }}{{ .Values.keys.existingSecret }}{{ else if .Values.keys.entries }}{{ include "hfh.name" . }}-keys{{ end }}
{{- end }}
