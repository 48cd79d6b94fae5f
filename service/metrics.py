"""Prometheus metrics. Each is documented in docs/service.md, and a test says so."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from service.errors import ApiError

__all__ = ["Measured", "Metrics"]

LATENCY_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
IDS_BUCKETS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """The metrics of one process, or with several workers (PROMETHEUS_MULTIPROC_DIR) of all of them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        shared = self.registry
        self.requests = Counter("hfh_requests_total", "Answered requests", ["route", "status"], registry=shared)
        self.ids = Counter("hfh_ids_total", "Ids looked up", ["table"], registry=shared)
        self.latency = Histogram(
            "hfh_request_seconds",
            "From the whole body read to the answer made",
            ["route"],
            buckets=LATENCY_BUCKETS_S,
            registry=shared,
        )
        self.request_ids = Histogram("hfh_request_ids", "Ids of a request", buckets=IDS_BUCKETS, registry=shared)
        self.in_flight = Gauge("hfh_in_flight_ids", "Ids being answered", multiprocess_mode="livesum", registry=shared)
        self.rss = Gauge("hfh_resident_bytes", "Resident memory", multiprocess_mode="livesum", registry=shared)
        self.snapshot = Gauge(
            "hfh_snapshot_info",
            "1 for each served table",
            ["table", "version"],
            multiprocess_mode="livemax",
            registry=shared,
        )

    def measured(self, route: str) -> Measured:
        """Counts one answer of a route, and how long a good one took: ``with metrics.measured("search") as clock:``."""
        return Measured(self, route)

    def render(self) -> bytes:
        """The text exposition."""
        self.rss.set(_resident_bytes())
        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class Measured:
    """One request being answered. What an ApiError raised in the block says is its status."""

    def __init__(self, metrics: Metrics, route: str) -> None:
        self._metrics, self._route = metrics, route

    def __enter__(self) -> Measured:
        self.restart()
        return self

    def restart(self) -> None:
        """Count the time from now on: the body has come."""
        self._began = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._metrics.latency.labels(self._route).observe(time.perf_counter() - self._began)
        status = 200 if error is None else error.status if isinstance(error, ApiError) else 500
        self._metrics.requests.labels(self._route, str(status)).inc()


def _resident_bytes() -> int:
    """This process's resident memory, 0 where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
