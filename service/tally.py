"""What every request counts, in plain integers: a Prometheus counter costs a microsecond or more, an addition a fiftieth.

The sums are moved into the metrics when they are read and once a second (``service.housekeeping``), so that whichever of several
workers is scraped sees what the others counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import TYPE_CHECKING

from prometheus_client import Histogram

if TYPE_CHECKING:
    from service.metrics import Metrics

__all__ = ["Tally", "add_to_histogram"]


def add_to_histogram(histogram: Histogram, counts: list[int], total: float) -> None:
    """Add many observations at once: ``counts`` of them in each bucket (the last is +Inf), ``total`` their sum."""
    for bucket, count in zip(histogram._buckets, counts, strict=True):
        if count:
            bucket.inc(count)
    histogram._sum.inc(total)


class _Buckets:
    """One histogram's observations since they were last moved."""

    __slots__ = ("bounds", "counts", "target", "total")

    def __init__(self, target: Histogram, bounds: tuple[float, ...]) -> None:
        self.target, self.bounds = target, bounds
        self.counts, self.total = [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def move(self) -> None:
        counts, total = self.counts, self.total
        self.counts, self.total = [0] * len(counts), 0.0
        add_to_histogram(self.target, counts, total)


class Tally:
    """Counts of one process, only ever touched by its event loop."""

    def __init__(self, metrics: Metrics, latency_bounds: tuple[float, ...], ids_bounds: tuple[float, ...]) -> None:
        self._metrics, self._latency_bounds = metrics, latency_bounds
        self._answered: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._ids: defaultdict[str, int] = defaultdict(int)
        self._cached: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._latency: dict[str, _Buckets] = {}
        self._request_ids = _Buckets(metrics.request_ids, ids_bounds)

    def answered(self, route: str, status: int) -> None:
        """One request of a route was answered with this status."""
        self._answered[route, status] += 1

    def took(self, route: str, seconds: float) -> None:
        """From the whole body read to the answer made."""
        buckets = self._latency.get(route)
        if buckets is None:
            buckets = self._latency[route] = _Buckets(self._metrics.latency.labels(route), self._latency_bounds)
        buckets.observe(seconds)

    def looked_up(self, table: str, ids: int) -> None:
        """A request's ids of one table."""
        self._ids[table] += ids
        self._request_ids.observe(ids)

    def cached(self, table: str, hits: int, misses: int) -> None:
        """Rows that were found in a cache, and that were not."""
        self._cached[table, "hit"] += hits
        self._cached[table, "miss"] += misses

    def move(self) -> None:
        """Move what was counted into the metrics."""
        answered, self._answered = self._answered, defaultdict(int)
        for (route, status), count in answered.items():
            self._metrics.requests.labels(route, str(status)).inc(count)
        ids, self._ids = self._ids, defaultdict(int)
        for table, total in ids.items():
            self._metrics.ids.labels(table).inc(total)
        cached, self._cached = self._cached, defaultdict(int)
        for (table, result), total in cached.items():
            self._metrics.cached.labels(table, result).inc(total)
        for buckets in (*self._latency.values(), self._request_ids):
            if any(buckets.counts):
                buckets.move()
