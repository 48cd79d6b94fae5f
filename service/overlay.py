"""The overlay: rows written since the snapshots were made, served before them. In this process alone; see overlay_redis."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from service.errors import ApiError
from service.fresh_rows import ID_BYTES, FreshRows

__all__ = ["Overlay", "check_room"]

Ids = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


class Overlay:
    """Fresh rows by table, bounded in rows and bytes over all tables.

    ``shared`` says whether every process of the service sees a write; where it is false, writes are refused.
    """

    store = "process"

    def __init__(self, max_rows: int, max_bytes: int, shared: bool = True) -> None:
        self.max_rows, self.max_bytes, self.shared = max_rows, max_bytes, shared
        self.stale = False
        self._tables: dict[str, FreshRows] = {}
        self._sequence = 0

    def fresh(self, table: str) -> FreshRows:
        """The rows of a table, which stay the same object for as long as the process runs."""
        return self._tables.setdefault(table, FreshRows())

    @property
    def tables(self) -> Iterable[tuple[str, FreshRows]]:
        """Every table that may have rows."""
        return list(self._tables.items())

    @property
    def age_s(self) -> float:
        """Seconds since this process last knew that it has every row."""
        return 0.0

    def describe(self) -> dict[str, object]:
        """What ``/readyz`` and ``/v1/tables`` say about it."""
        return {"store": self.store, "shared": self.shared, "stale": self.stale}

    async def start(self) -> None:
        """Begin to follow the shared store, if there is one."""

    async def close(self) -> None:
        """Stop following it."""

    async def put(self, table: str, ids: Ids, rows: F32) -> int:
        """Store rows (n, D) of different ids (n,); the sequence number of the write.

        Raises:
            ApiError: 413 when the overlay is full, 424 when the store is gone or missing.
        """
        self._check_shared()
        fresh = self.fresh(table)
        others = [found for found in self._tables.values() if found is not fresh]
        count = len(ids) + (fresh.count - fresh.known(ids) if fresh.dim == rows.shape[1] else 0)
        total_rows = count + sum(found.count for found in others)
        total_bytes = count * (rows.shape[1] * 4 + ID_BYTES) + sum(found.nbytes for found in others)
        check_room(total_rows, total_bytes, self.max_rows, self.max_bytes)
        sequence = self._next()
        fresh.put(ids, np.full(len(ids), sequence), rows)
        return sequence

    async def drop(self, table: str, ids: Ids | None = None, until: int | None = None) -> int:
        """Forget the rows of ids, or of all of them, written up to a sequence number; how many there were."""
        self._check_shared()
        self._next()
        return self.fresh(table).drop(ids, until)

    def _next(self) -> int:
        self._sequence = max(self._sequence + 1, time.time_ns() // 1000)
        return self._sequence

    def _check_shared(self) -> None:
        if not self.shared:
            raise ApiError(
                424,
                "redis_needed",
                "a row written here would reach only one of this service's workers; "
                "start it with --redis-url redis://..., or with one worker",
            )


def check_room(rows: int, nbytes: int, max_rows: int, max_bytes: int) -> None:
    """413 when the overlay would hold more than it may."""
    if rows > max_rows or nbytes > max_bytes:
        raise ApiError(
            413,
            "overlay_full",
            f"the overlay would hold {rows:,} rows in {nbytes:,} bytes; at most {max_rows:,} rows and {max_bytes:,} bytes "
            "are allowed, so fold it into a new snapshot (hfh compress --overlay) or remove rows",
        )
