"""What is in deploy/: each file is checked by its own tool, and refers only to what exists."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from hfh_embed import __version__
from service.auth import Keyring, new_key
from service.configuration import resolve
from service.metrics import Metrics

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "hfh"
RULES = DEPLOY / "prometheus" / "rules.yaml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "hfh.json"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()


def _tool(name: str, *arguments: object) -> str:
    beside = ROOT / ".venv" / "bin" / name
    program = str(beside) if beside.exists() else shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed here; CI has it")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    return done.stdout


def _alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def _expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [rule["expr"] for rule in _alerts()] + [target["expr"] for panel in panels for target in panel["targets"]]


def test_alerts_and_dashboard_refer_only_to_metrics_and_reasons_that_exist() -> None:
    there = set()
    for family in Metrics().registry.collect():
        kinds = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
        there |= {family.name + ending for ending in kinds.get(family.type, ("",))}
    documented = (ROOT / "docs" / "service.md").read_text()
    for expression in _expressions():
        used = set(re.findall(r"\bhfh_\w+", expression))
        assert used <= there, expression
        for pattern in re.findall(r'reason=~?"([^"]+)"', expression):
            reasons = [reason for reason in re.findall(r"`(\w+)`", documented) if re.fullmatch(pattern, reason)]
            assert len(reasons) >= (2 if re.search(r"[|?]", pattern) else 1), pattern


def test_every_reason_of_a_refusal_is_documented() -> None:
    documented = (ROOT / "docs" / "service.md").read_text()
    counted = set()
    for file in (ROOT / "service").rglob("*.py"):
        text = file.read_text()
        counted |= set(re.findall(r"refusal\(\s*\d+,\s*\"(\w+)\"", text))
        counted |= set(re.findall(r"\.(?:count|drop|_refuse)\((?:\d+, )?\"(\w+)\"", text))
    assert {"over_capacity", "unauthorized", "rate_limited", "connections", "head_timeout", "unread_answer"} <= counted
    for reason in counted:
        assert f"`{reason}`" in documented, reason


def test_every_alert_is_in_the_runbook_and_tested() -> None:
    tested = json.dumps(yaml.safe_load(RULES.with_name("rules_test.yaml").read_text()))
    for alert in _alerts():
        assert f"### {alert['alert']}\n" in RUNBOOK
        assert tested.count(f'"alertname": "{alert["alert"]}"') >= 2, "it fires, and stays quiet"


def test_prometheus_own_tool_accepts_configuration_rules_and_their_tests() -> None:
    _tool("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yaml")
    assert "SUCCESS" in _tool("promtool", "check", "rules", RULES)
    assert "SUCCESS" in _tool("promtool", "test", "rules", RULES.with_name("rules_test.yaml"))


def test_prometheus_accepts_the_dashboards_expressions(tmp_path: Path) -> None:
    expressions = [text.replace("$__rate_interval", "5m").replace("$job", "hfh") for text in _expressions()]
    rules = [{"record": f"r{number}", "expr": text} for number, text in enumerate(expressions)]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    _tool("promtool", "check", "rules", path)


def test_the_dashboards_panels_do_not_overlap_and_use_the_provisioned_source() -> None:
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    uid = source["datasources"][0]["uid"]
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["datasource"]["uid"] == uid


def test_compose_is_valid_and_its_files_are_there() -> None:
    _tool("docker-compose", "-f", DEPLOY / "compose.yaml", "config", "-q")
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(services) == {"hfh", "redis", "prometheus", "grafana"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), source
    settings = resolve({}, {}, DEPLOY / "hfh.yaml").settings
    grace_s = int(services["hfh"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > settings.drain_delay_s + settings.drain_s


def _render(tmp_path: Path, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    documents = list(yaml.safe_load_all(_tool("helm", "template", "prod", CHART, "--values", path)))
    for document in documents:
        if document["kind"] != "ServiceMonitor":  # the operator's own kind, whose schema is not Kubernetes'
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    return {document["kind"]: document for document in documents}


EVERYTHING = {
    "snapshots": {"image": "registry.example/snapshots:5"},
    "settings": {"metrics_open": False, "drain_delay_s": 2.5, "drain_s": 40, "max_in_flight_ids": 20_000_000},
    "env": [{"name": "HFH_RATE_LIMIT_URL", "valueFrom": {"secretKeyRef": {"name": "redis", "key": "url"}}}],
    "autoscaling": {"inFlightIds": "200000"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "x"}, "keySecret": {"name": "scrape", "key": "key"}},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "c"},
    "imagePullSecrets": [{"name": "pull"}],
}


def test_helm_finds_no_fault_with_the_chart() -> None:
    assert "0 chart(s) failed" in _tool("helm", "lint", "--strict", CHART, "--set", "snapshots.existingClaim=x")
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__


@pytest.mark.parametrize("values", [{"snapshots": {"existingClaim": "x"}}, EVERYTHING], ids=["defaults", "everything"])
def test_the_rendered_chart_is_valid_safe_and_drains(tmp_path: Path, values: dict[str, Any]) -> None:
    found = _render(tmp_path, values)
    assert {"Deployment", "Service", "ConfigMap", "HorizontalPodAutoscaler", "PodDisruptionBudget"} <= set(found)
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    (snapshots,) = (mount for mount in container["volumeMounts"] if mount["name"] == "snapshots")
    assert snapshots == {"name": "snapshots", "mountPath": "/snapshots", "readOnly": True}
    file = tmp_path / "hfh.yaml"
    file.write_text(found["ConfigMap"]["data"]["hfh.yaml"])
    environment = {variable["name"]: variable.get("value", "redis://x") for variable in container["env"]}
    settings = resolve({}, environment, file).settings
    assert (settings.host, settings.port, settings.paths) == ("0.0.0.0", 8000, (Path("/snapshots"),))
    for name, value in values.get("settings", {}).items():
        assert getattr(settings, name) == value, name
    assert pod["terminationGracePeriodSeconds"] > settings.drain_delay_s + settings.drain_s
    probe = container["readinessProbe"]
    if "settings" not in values:
        assert settings.drain_delay_s >= probe["periodSeconds"] * probe["failureThreshold"] + 2
    assert found["Deployment"]["spec"]["selector"]["matchLabels"].items() <= _labels(found).items()
    assert found["Service"]["spec"]["selector"].items() <= _labels(found).items()


def _labels(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    labels: dict[str, str] = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    return labels


def test_the_charts_options_arrive(tmp_path: Path) -> None:
    found = _render(tmp_path, EVERYTHING)
    metrics = found["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert [metric["type"] for metric in metrics] == ["Pods", "Resource"]
    assert metrics[0]["pods"]["metric"]["name"] == "hfh_in_flight_ids"
    (endpoint,) = found["ServiceMonitor"]["spec"]["endpoints"]
    assert (endpoint["path"], endpoint["authorization"]["credentials"]["name"]) == ("/metrics", "scrape")
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert {"image": {"reference": "registry.example/snapshots:5", "pullPolicy": "IfNotPresent"}} in [
        {key: value for key, value in volume.items() if key != "name"} for volume in pod["volumes"]
    ]


def test_the_charts_keys_are_the_services(tmp_path: Path) -> None:
    key, line = new_key("feed", "read")
    found = _render(tmp_path, {"snapshots": {"existingClaim": "x"}, "keys": {"entries": [json.loads(line)]}})
    file = tmp_path / "keys.yaml"
    file.write_text(found["Secret"]["stringData"]["keys.yaml"])
    known = Keyring.load(file).find(key.encode())
    assert known is not None
    assert known.name == "feed"
    pod = found["Deployment"]["spec"]["template"]["spec"]
    settings = yaml.safe_load(found["ConfigMap"]["data"]["hfh.yaml"])
    (mount,) = (mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "keys")
    assert settings["keys_file"] == f"{mount['mountPath']}/keys.yaml"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"snapshots": {"existingClaim": "x", "hostPath": "/x"}},
        {"snapshots": {"existingClaim": "x"}, "settings": {"port": 5}},
        {"snapshots": {"existingClaim": "x"}, "colour": "red"},
    ],
)
def test_values_that_cannot_work_are_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match=r"exactly one of snapshots|specifications of the schema"):
        _render(tmp_path, values)
