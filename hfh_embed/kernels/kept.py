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

__all__ = ["KeptKernel", "KeptPlaces"]

BLOCK_IDS = 64
"""Ids between two counts, one word of bits."""
OUTSIDE = np.iinfo(np.int64).max
Ids = npt.NDArray[np.int64]
Find = Callable[[npt.NDArray[np.uint8], Ids, int, int, bool, Ids, Ids], int]


class KeptPlaces:
    """Where kept ids are among each other, over a table's stored bits, which are read at the first lookup.

    Damaged bits give wrong places, but never one outside the table.
    """

    def __init__(self, data: TableData, find: Find | None = None) -> None:
        table = data.table
        assert table.kept is not None
        self._n, self._count, self._refuses = table.num_embeddings, table.kept.count, table.unknown is Unknown.ERROR
        self._bits = data.arrays["kept.bits"]
        self._find = find or _find

    def of(self, ids: Ids) -> tuple[int, Ids]:
        """The place of each id (B,), the number of kept ids for others; and before it -1, or the position of the first id that is
        refused: negative, or outside a table whose policy is ``error``. Places are then unspecified.
        """
        places = np.empty(len(ids), dtype=np.int64)
        return self._find(self._bits, self._before, self._n, self._count, self._refuses, ids, places), places

    @functools.cached_property
    def _before(self) -> Ids:
        """Kept ids before each block, and in all: (blocks + 1,)."""
        size = BLOCK_IDS // 8
        counts = np.zeros(-(-len(self._bits) // size) + 1, dtype=np.int64)
        for start in range(0, len(counts) - 1, 2**16):
            part = self._bits[start * size : (start + 2**16) * size]
            ones = np.unpackbits(part).reshape(len(part), 8).sum(axis=1, dtype=np.int64)
            sums = np.add.reduceat(ones, np.arange(0, len(ones), size))
            counts[start + 1 : start + 1 + len(sums)] = sums
        return counts.cumsum()


def _find(bits: npt.NDArray[np.uint8], before: Ids, n: int, count: int, refuses: bool, ids: Ids, places: Ids) -> int:
    """What ``_native.kept_places`` does, in numpy."""
    wrong = (ids < 0) | (ids >= n if refuses else False)
    if wrong.any():
        return int(wrong.argmax())
    for start in range(0, len(ids), 2**14):
        part = ids[start : start + 2**14]
        block, within = np.divmod(np.where(part < n, part, 0), BLOCK_IDS)
        where = block[:, None] * (BLOCK_IDS // 8) + np.arange(BLOCK_IDS // 8)
        kept = np.unpackbits(bits[np.minimum(where, len(bits) - 1)], axis=1, bitorder="little").astype(bool)
        place = before[block] + (kept & (np.arange(BLOCK_IDS) < within[:, None])).sum(axis=1)
        found = kept[np.arange(len(part)), within] & (part < n) & (place < count)
        places[start : start + len(part)] = np.where(found, place, count)
    return -1


class KeptKernel:
    """See :class:`hfh_embed.kernels.Kernel`.

    Args:
        data: a table that keeps only some ids.
        prepare: makes the kernel of the kept ids' table.
        find: a faster way than numpy's to find places.
    """

    def __init__(self, data: TableData, prepare: Callable[[TableData], Kernel], find: Find | None = None) -> None:
        self._places = KeptPlaces(data, find)
        self._padding = data.table.padding_id
        self._inner = prepare(TableData(data.table.inner, data.pool, data.arrays))

    def lookup(self, ids: Any, dtype: Any, num_threads: int = 1) -> npt.NDArray[Any] | None:
        if type(ids) is not np.ndarray or ids.dtype != np.int64 or ids.ndim != 1 or not ids.flags.carray:
            return None
        refused, places = self._placed(ids)
        return None if refused >= 0 else self._inner.lookup(places, dtype, num_threads)

    def rows(self, ids: Ids, out: npt.NDArray[Any], num_threads: int = 1) -> int:
        refused, places = self._placed(ids)
        return refused if refused >= 0 else self._inner.rows(places, out, num_threads)

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
        refused, places = self._placed(ids[first:last])
        if refused >= 0:
            return first + refused
        bounds = bounds - first
        weights = None if weights is None else weights[first:last]
        if self._padding is not None:  # such ids do not count, unlike those that are not kept
            counted = places != OUTSIDE
            bounds = np.concatenate(([0], np.cumsum(counted)))[bounds]
            places, weights = places[counted], None if weights is None else weights[counted]
        return self._inner.bag(places, bounds, weights, mode, out, num_threads)

    def _placed(self, ids: Ids) -> tuple[int, Ids]:
        refused, places = self._places.of(ids)
        if self._padding is not None:
            places[ids == self._padding] = OUTSIDE
        return refused, places
