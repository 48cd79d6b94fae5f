"""Prometheus metrics. Each is documented in docs/service.md, and a test says so."""

from __future__ import annotations

import asyncio
import os
import re
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

import hfh_embed
from hfh_embed.errors import InputError
from service.errors import ApiError
from service.tally import Tally

__all__ = ["Measured", "Metrics"]

LATENCY_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
IDS_BUCKETS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
RESERVED_BYTES = 262_144
FILES = ("counter", "histogram", "gauge_livesum", "gauge_livemax")
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


class Metrics:
    """The metrics of one process, or with several workers (PROMETHEUS_MULTIPROC_DIR) of all of them."""

    def __init__(self) -> None:
        if FOLDER in os.environ:
            _reserve(Path(os.environ[FOLDER]))
        self.registry = CollectorRegistry()
        shared = self.registry
        self.rejected = Counter(
            "hfh_rejected_total", "Requests and connections that were refused, by reason", ["reason"], registry=shared
        )
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
        self.cached = Counter(
            "hfh_cache_rows_total", "Rows asked of a cache, by result", ["table", "result"], registry=shared
        )
        self.batch_ids = Histogram("hfh_batch_ids", "Ids of a batch", buckets=IDS_BUCKETS, registry=shared)
        self.in_flight = _gauge("hfh_in_flight_ids", "Ids being answered", shared)
        self.most_in_flight = _gauge("hfh_max_in_flight_ids", "Ids that may be answered at once", shared)
        self.requests_now = _gauge("hfh_in_flight_requests", "Requests being answered", shared)
        self.connections = _gauge("hfh_connections", "Open connections", shared)
        self.unread = _gauge("hfh_unread_bytes", "Bytes of answers that wait for slow clients", shared)
        self.lag = _gauge("hfh_event_loop_lag_seconds", "How late the event loop was at its last tick", shared, "max")
        self.ready = _gauge("hfh_ready_processes", "Processes that want requests", shared)
        self.rss = _gauge("hfh_resident_bytes", "Resident memory", shared)
        self.pss = _gauge("hfh_proportional_bytes", "Resident memory, shared pages divided by their sharers", shared)
        self.started = _gauge("hfh_process_start_seconds", "When the youngest process began, unix time", shared, "max")
        self.started.set(time.time())
        self.build = Gauge(
            "hfh_build_info", "1, with the version", ["version"], multiprocess_mode="livemax", registry=shared
        )
        self.build.labels(hfh_embed.__version__).set(1)
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
        self.overlay_stale = _gauge("hfh_overlay_stale", "1 while Redis does not answer", shared, "max")
        age = "Since the overlay was last known to be whole"
        self.overlay_age = _gauge("hfh_overlay_age_seconds", age, shared, "max")
        self.activations = Counter("hfh_activations_total", "Times that other versions were served", registry=shared)
        self.tally = Tally(self, LATENCY_BUCKETS_S, IDS_BUCKETS)

    def measured(self, route: str) -> Measured:
        """Counts one answer of a route, and how long a good one took: ``with metrics.measured("search") as clock:``."""
        return Measured(self, route)

    def render(self) -> bytes:
        """The text exposition."""
        self.tally.move()
        registry = self.registry
        if FOLDER in os.environ:
            registry = CollectorRegistry()
            _forget_the_dead(Path(os.environ[FOLDER]))
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def measure_memory(self) -> None:
        """Set the gauges of this process's memory."""
        self.rss.set(_resident_bytes())
        self.pss.set(_proportional_bytes())


def _gauge(name: str, text: str, registry: CollectorRegistry, over_processes: str = "sum") -> Gauge:
    mode = "livesum" if over_processes == "sum" else "livemax"
    return Gauge(name, text, multiprocess_mode=mode, registry=registry)  # type: ignore[arg-type]


def _reserve(folder: Path) -> None:
    """Give this process's files their room now: they are mapped, and a page that a full disk refuses later would kill it."""
    for kind in FILES:
        try:
            with (folder / f"{kind}_{os.getpid()}.db").open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVED_BYTES)
        except OSError as error:
            raise InputError(
                f"metrics cannot be kept in {folder} ({error.strerror}); point {FOLDER} to a folder with room for "
                f"{RESERVED_BYTES * len(FILES) // 1024:,} kB a worker"
            ) from None


def _forget_the_dead(folder: Path) -> None:
    """Gauges of processes that were killed count no more."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            mark_process_dead(int(pid))  # type: ignore[no-untyped-call]


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
            self._metrics.tally.took(self._route, time.perf_counter() - self._began)
            status = 200
        elif isinstance(error, ApiError):
            status = error.status
        else:  # cancelled: its deadline passed, or the process stops without waiting longer
            status = 504 if isinstance(error, asyncio.CancelledError) else 500
        self._metrics.tally.answered(self._route, status)


def _resident_bytes() -> int:
    """This process's resident memory, 0 where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _proportional_bytes() -> int:
    """This process's share of resident memory, 0 where /proc does not tell."""
    try:
        found = _PSS.search(Path("/proc/self/smaps_rollup").read_bytes())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
