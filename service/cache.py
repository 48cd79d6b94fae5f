"""Rows that were computed before, for tables whose rows are dear: bounded in bytes, arrays only, no Python object for a row.

Set-associative, as in a processor: an id may lie in one of ``WAYS`` places, found by one multiplication; a new row replaces the
oldest of them. A lookup is a handful of numpy calls however many ids it has.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

import hfh_embed

__all__ = ["RowCache"]

Ids = npt.NDArray[np.int64]
Rows = npt.NDArray[Any]
WAYS = 4
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: Fibonacci hashing (Knuth, TAOCP 3, 6.4)


class RowCache:
    """Looks rows of one table up, and remembers them in at most ``nbytes``. For one thread; the table is another's to keep."""

    def __init__(self, table: hfh_embed.Table, nbytes: int) -> None:
        self._table = weakref.ref(table)
        self.hits = self.misses = 0
        one_set = WAYS * (8 + 4 * table.embedding_dim) + 1
        sets = 1 << max(0, (nbytes // one_set).bit_length() - 1)
        self._keys = np.full((sets, WAYS), -1, dtype=np.int64)
        self._rows = np.empty((sets * WAYS, table.embedding_dim), dtype=np.float32)
        self._next = np.zeros(sets, dtype=np.uint8)
        self._shift = np.uint64(64 - (sets.bit_length() - 1))

    @property
    def table(self) -> hfh_embed.Table:
        """The table whose rows these are."""
        table = self._table()
        assert table is not None
        return table

    @property
    def nbytes(self) -> int:
        """What it holds at most, all of it counted."""
        return self._keys.nbytes + self._rows.nbytes + self._next.nbytes

    def lookup(self, ids: Ids, *, dtype: npt.DTypeLike = np.float32) -> Rows:
        """As :meth:`hfh_embed.Table.lookup` for ids (n,)."""
        sets = self._sets(ids)
        found = self._keys[sets] == ids[:, None]
        hit = found.any(axis=1) & (ids >= 0)  # empty places are -1, which no row has
        places = sets * WAYS + found.argmax(axis=1)
        self.hits += (hits := int(np.count_nonzero(hit)))
        if hits == len(ids):
            return self._rows[places].astype(dtype, copy=False)
        known, missing = self._rows[places[hit]], ids[~hit]
        new = self.table.lookup(missing)
        rows = np.empty((len(ids), new.shape[1]), dtype=np.float32)
        rows[hit], rows[~hit] = known, new
        self.misses += len(missing)
        self._remember(missing, sets[~hit], new)
        return rows.astype(dtype, copy=False)

    def _sets(self, ids: Ids) -> Ids:
        if len(self._next) == 1:
            return np.zeros(len(ids), dtype=np.int64)
        return ((ids.view(np.uint64) * GOLDEN) >> self._shift).astype(np.int64)

    def _remember(self, ids: Ids, sets: Ids, rows: Rows) -> None:
        """Replace the oldest row of each set; of several that want one place the last is kept, in both arrays alike."""
        ways = self._next[sets]
        last = np.unique((sets * WAYS + ways)[::-1], return_index=True)[1]
        chosen = len(ids) - 1 - last
        ids, sets, ways = ids[chosen], sets[chosen], ways[chosen]
        self._keys[sets, ways] = ids
        self._rows[sets * WAYS + ways] = rows[chosen]
        self._next[sets] = (ways + 1) % WAYS
