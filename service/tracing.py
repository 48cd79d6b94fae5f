"""OpenTelemetry, when a collector is set: the library's ASGI middleware around the application. Otherwise nothing at all."""

from __future__ import annotations

from typing import Any

from hfh_embed.errors import MissingDependencyError
from service.settings import Settings

__all__ = ["traced"]

UNTRACED = "livez,readyz,metrics,v2/health"


def traced(app: Any, settings: Settings) -> Any:
    """``app`` itself without a collector, else ``app`` with a span for a share of its requests."""
    if settings.otel_endpoint is None:
        return app
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.util.http import parse_excluded_urls
    except ImportError as error:
        message = f"otel_endpoint needs {error.name}; install it with: pip install 'hfh-embed[otel]'"
        raise MissingDependencyError(message) from None
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.otel_sample)),
        resource=Resource.create({"service.name": "hfh"}),
    )
    exporter = OTLPSpanExporter(endpoint=settings.otel_endpoint.rstrip("/") + "/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return OpenTelemetryMiddleware(
        app,
        tracer_provider=provider,
        excluded_urls=parse_excluded_urls(UNTRACED),
        exclude_spans=["receive", "send"],
    )
