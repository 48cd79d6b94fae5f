"""Prometheus metrics. Each is documented in docs/service.md, and a test says so."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

__all__ = ["Metrics"]

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
        self.overlay_rows = Gauge(
            "hfh_overlay_rows", "Rows of the overlay", ["table"], multiprocess_mode="livemax", registry=shared
        )
        self.overlay_stale = Gauge(
            "hfh_overlay_stale", "1 while Redis does not answer", multiprocess_mode="livemax", registry=shared
        )
        self.overlay_age = Gauge(
            "hfh_overlay_age_seconds",
            "Since the overlay was last known to be whole",
            multiprocess_mode="livemax",
            registry=shared,
        )
        self.activations = Counter("hfh_activations_total", "Times that other versions were served", registry=shared)

    def render(self) -> bytes:
        """The text exposition."""
        self.rss.set(_resident_bytes())
        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            _forget_dead_workers(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _forget_dead_workers(folder: Path) -> None:
    """A killed worker's gauges would be shown for ever."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            mark_process_dead(int(pid), str(folder))  # type: ignore[no-untyped-call]


def _resident_bytes() -> int:
    """This process's resident memory, 0 where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
