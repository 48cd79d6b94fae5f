"""Tables that keep only some of their ids: places are found here, and the rows of kept ids are another kernel's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.kernels import Kernel, Mode
from hfh_embed.layout import TableData
from hfh_embed.spec import Unknown

__all__ = ["BLOCK_IDS", "KeptKernel", "KeptPlaces"]

BLOCK_IDS = 512
"""Ids between two counts, one cache line of bits."""
Ids = npt.NDArray[np.int64]
Find = Callable[[npt.NDArray[np.uint8], Ids, int, int, Ids, Ids], None]


class KeptPlaces:
    """Where kept ids are among each other, over a table's stored bits, which are read at the first lookup.

    Damaged bits give wrong places, but never one outside the table.
    """

    def __init__(self, data: TableData, find: Find | None = None) -> None:
        assert data.table.kept is not None
        self._n, self._count = data.table.num_embeddings, data.table.kept.count
        self._bits = data.arrays["kept.bits"]
        self._find = find or _find

    def of(self, ids: Ids) -> Ids:
        """The place of each id (B,); the number of kept ids for those that are not kept or are outside the table."""
        places = np.empty(ids.shape, dtype=np.int64)
        self._find(self._bits, self._before, self._n, self._count, ids, places)
        return places

    @functools.cached_property
    def _before(self) -> Ids:
        """Kept ids before each block and in all, (blocks + 1,)."""
        size = BLOCK_IDS // 8
        counts = np.zeros(-(-len(self._bits) // size) + 1, dtype=np.int64)
        for start in range(0, len(counts) - 1, 2**14):
            part = self._bits[start * size : (start + 2**14) * size]
            ones = np.unpackbits(part).reshape(len(part), 8).sum(axis=1, dtype=np.int64)
            sums = np.add.reduceat(ones, np.arange(0, len(ones), size))
            counts[start + 1 : start + 1 + len(sums)] = sums
        return counts.cumsum()


def _find(bits: npt.NDArray[np.uint8], before: Ids, n: int, count: int, ids: Ids, places: Ids) -> None:
    for start in range(0, len(ids), 2**12):
        part = ids[start : start + 2**12]
        safe = np.where((part >= 0) & (part < n), part, 0)
        block, within = np.divmod(safe, BLOCK_IDS)
        where = block[:, None] * (BLOCK_IDS // 8) + np.arange(BLOCK_IDS // 8)
        kept = np.unpackbits(bits[np.minimum(where, len(bits) - 1)], axis=1, bitorder="little").astype(bool)
        earlier = (kept & (np.arange(BLOCK_IDS) < within[:, None])).sum(axis=1)
        place = before[block] + earlier
        found = kept[np.arange(len(part)), within] & (safe == part) & (place < count)
        places[start : start + len(part)] = np.where(found, place, count)


class KeptKernel:
    """See :class:`hfh_embed.kernels.Kernel`.

    Args:
        data: a table that keeps only some ids.
        prepare: makes the kernel of the kept ids' table.
        find: a faster way than numpy's to find places.
    """

    def __init__(self, data: TableData, prepare: Callable[[TableData], Kernel], find: Find | None = None) -> None:
        table = data.table
        self._places = KeptPlaces(data, find)
        self._n, self._padding = table.num_embeddings, table.padding_id
        self._refuses = table.unknown is Unknown.ERROR
        self._inner = prepare(TableData(table.inner, data.pool, data.arrays))

    def lookup(self, ids: Any, dtype: Any, num_threads: int = 1) -> npt.NDArray[Any] | None:
        if not isinstance(ids, np.ndarray) or ids.dtype != np.int64 or not ids.flags.c_contiguous:
            return None
        flat = ids.reshape(-1)
        if self._refused(flat) >= 0:
            return None
        rows = self._inner.lookup(self._placed(flat), dtype, num_threads)
        return None if rows is None else rows.reshape(*ids.shape, rows.shape[-1])

    def rows(self, ids: Ids, out: npt.NDArray[Any], num_threads: int = 1) -> int:
        refused = self._refused(ids)
        return refused if refused >= 0 else self._inner.rows(self._placed(ids), out, num_threads)

    def plain_bag(
        self, ids: Any, offsets: Any, weights: Any, mode: Mode, dtype: Any, num_threads: int = 1
    ) -> npt.NDArray[Any] | None:
        return None

    def bag(
        self,
        ids: Ids,
        bounds: Ids,
        weights: npt.NDArray[np.float32] | None,
        mode: Mode,
        out: npt.NDArray[Any],
        num_threads: int = 1,
    ) -> int:
        first, last = int(bounds[0]), int(bounds[-1])
        used = ids[first:last]
        if (refused := self._refused(used)) >= 0:
            return first + refused
        bounds = bounds - first
        weights = None if weights is None else weights[first:last]
        if self._padding is not None:  # ids that do not count, unlike those that are not kept
            counted = used != self._padding
            bounds = np.concatenate(([0], np.cumsum(counted)))[bounds]
            used, weights = used[counted], None if weights is None else weights[counted]
        return self._inner.bag(self._placed(used), bounds, weights, mode, out, num_threads)

    def _placed(self, ids: Ids) -> Ids:
        places = self._places.of(ids)
        if self._padding is not None:
            places[ids == self._padding] = np.iinfo(np.int64).max
        return places

    def _refused(self, ids: Ids) -> int:
        """Position of the first id that gets no row, or -1."""
        if not len(ids):
            return -1
        if ids.min() >= 0 and not (self._refuses and ids.max() >= self._n):
            return -1
        return int(np.argmax((ids < 0) | (ids >= self._n if self._refuses else False)))
