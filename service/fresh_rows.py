"""Rows of one table written since its snapshot, and lookups that see them.

The ids are kept sorted and found by binary search, after a look at hashed marks that spares most ids the search. Rows and marks
are only ever added, and a write replaces the whole index at once: a lookup in another thread sees the rows before a write or
after it, and needs no lock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hfh_embed import Table
from hfh_embed.lookup import bag_bounds
from service.cache import RowCache

__all__ = ["ID_BYTES", "FreshRows"]

Ids = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Mode = Literal["sum", "mean", "max"]
ID_BYTES = 8
BLOCK_VALUES = 2**20
FIRST_ROWS = 64
MARKS_PER_ID = 8
NONE = np.empty(0, dtype=np.int64)
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: Fibonacci hashing


@dataclass(frozen=True)
class _Index:
    """``ids`` (n,) ascend; the row of ids[i] is rows[slots[i]], written at sequence number sequences[i].

    ``marks`` is true at the hash of every id here, and by chance at that of a few others.
    """

    ids: Ids
    slots: Ids
    sequences: Ids
    rows: F32
    marks: npt.NDArray[np.bool_]

    shift: np.uint64

    def hashes(self, ids: Ids) -> Ids:
        """The place of each id in ``marks``: the product's upper bits."""
        return ((ids.view(np.uint64) * SPREAD) >> self.shift).view(np.int64)  # as int64 it indexes four times faster


def _empty(dim: int) -> _Index:
    return _Index(NONE, NONE, NONE, np.empty((0, dim), dtype=np.float32), np.zeros(2, dtype=bool), np.uint64(63))


def _with_marks(index: _Index, room: int) -> _Index:
    """The index with marks for up to so many ids."""
    bits = (MARKS_PER_ID * max(1, room)).bit_length()
    marked = replace(index, marks=np.zeros(2**bits, dtype=bool), shift=np.uint64(64 - bits))
    marked.marks[marked.hashes(index.ids)] = True
    return marked


class FreshRows:
    """The rows of one table, all of one length D. Reads are safe from any thread, writes come from one at a time."""

    def __init__(self) -> None:
        self._index, self._used = _empty(0), 0
        self.writes = 0  # a cache of looked up rows is valid as long as this stays the same

    @property
    def count(self) -> int:
        """Ids that have a row here."""
        return len(self._index.ids)

    @property
    def dim(self) -> int:
        """D of the rows here, 0 when there are none."""
        return self._index.rows.shape[1] if self.count else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the ids and their rows, without spare room."""
        return self.count * (self.dim * 4 + ID_BYTES)

    def known(self, ids: Ids) -> int:
        """How many of different ids (n,) have a row here."""
        return int(np.isin(ids, self._index.ids, assume_unique=True).sum())

    def contents(self) -> tuple[Ids, Ids, F32]:
        """Ids (n,) ascending, their sequence numbers (n,), and a copy of their rows (n, D)."""
        index = self._index
        return index.ids, index.sequences, index.rows[index.slots]

    def put(self, ids: Ids, sequences: Ids, rows: F32) -> None:
        """Take rows (n, D) of different ids (n,); a row that is not newer than what the id has is left out.

        Rows of another length than those that are there replace all of them.
        """
        index, used = self._index, self._used
        if rows.shape[1] != index.rows.shape[1]:
            index, used = _empty(rows.shape[1]), 0
        order = np.argsort(ids, kind="stable")
        ids, sequences = ids[order], sequences[order]
        places = np.searchsorted(index.ids, ids)
        known = places < len(index.ids)
        known[known] = index.ids[places[known]] == ids[known]
        newer = ~known
        newer[known] = sequences[known] > index.sequences[places[known]]
        ids, sequences, places, known, rows = (
            ids[newer],
            sequences[newer],
            places[newer],
            known[newer],
            rows[order[newer]],
        )
        if not len(ids):
            return
        store = index.rows
        if used + len(rows) > len(store):
            used = len(index.ids)  # replaced rows are left behind
            store = np.empty((max(FIRST_ROWS, 2 * (used + len(rows))), rows.shape[1]), dtype=np.float32)
            store[:used] = index.rows[index.slots]
            index = _with_marks(replace(index, slots=np.arange(used)), len(store))
        slots = np.arange(used, used + len(rows))
        store[slots] = rows
        new_slots, new_sequences = index.slots.copy(), index.sequences.copy()
        new_slots[places[known]], new_sequences[places[known]] = slots[known], sequences[known]
        index.marks[index.hashes(ids)] = True
        at, fresh = places[~known], ~known
        self._used = used + len(rows)
        self._replace(
            _Index(
                np.insert(index.ids, at, ids[fresh]),
                np.insert(new_slots, at, slots[fresh]),
                np.insert(new_sequences, at, sequences[fresh]),
                store,
                index.marks,
                index.shift,
            )
        )

    def load(self, ids: Ids, sequences: Ids, rows: F32) -> None:
        """Have exactly these rows (n, D), of ids (n,) that ascend."""
        self._used = len(ids)
        index = replace(_empty(rows.shape[1]), ids=ids, slots=np.arange(len(ids)), sequences=sequences, rows=rows)
        self._replace(_with_marks(index, len(ids)))

    def drop(self, ids: Ids | None = None, until: int | None = None) -> int:
        """Forget the rows of ids (all of them if None) written up to sequence number ``until``; how many there were."""
        index = self._index
        gone = np.ones(len(index.ids), dtype=bool) if ids is None else np.isin(index.ids, ids)
        if until is not None:
            gone &= index.sequences <= until
        if not gone.any():
            return 0
        if gone.all():
            self._used = 0
            self._replace(_empty(0))
        else:
            kept = ~gone
            self._replace(replace(index, ids=index.ids[kept], slots=index.slots[kept], sequences=index.sequences[kept]))
        return int(gone.sum())

    def _replace(self, index: _Index) -> None:
        self._index = index
        self.writes += 1

    def lookup(self, table: Table, ids: Ids, dtype: npt.DTypeLike, cache: RowCache | None = None) -> npt.NDArray[Any]:
        """Rows of ids (n,), (n, D): those here, and the table's (by its ``cache``) for the others; raises as :meth:`Table.lookup`."""
        index, source = self._index, table if cache is None else cache
        at, slots = _find(index, table, ids)
        if not len(at):
            return source.lookup(ids, dtype=dtype)
        others = ids.copy()
        others[at] = 0  # which is in every table
        rows = source.lookup(others, dtype=dtype)
        with np.errstate(over="ignore"):  # beyond float16 is infinite, as in the kernels
            rows[at] = index.rows[slots]
        return rows

    def bag(
        self,
        table: Table,
        ids: Ids,
        dtype: npt.DTypeLike,
        *,
        offsets: Ids,
        mode: Mode = "mean",
        per_sample_weights: npt.ArrayLike | None = None,
        include_last_offset: bool = False,
    ) -> npt.NDArray[Any]:
        """One row for each bag, (bags, D), as :meth:`Table.bag` would give with the rows here in the table.

        The kernel combines the table's own rows; what is here is then combined with its result.
        """
        index = self._index
        at, slots = _find(index, table, ids)
        weights = None if per_sample_weights is None else np.asarray(per_sample_weights)
        if not len(slots) or (weights is not None and (weights.shape != ids.shape or mode != "sum")):
            return table.bag(  # which also says what is wrong with weights
                ids,
                offsets,
                mode=mode,
                per_sample_weights=weights,
                include_last_offset=include_last_offset,
                dtype=dtype,
            )
        hit = np.zeros(len(ids), dtype=bool)
        hit[at] = True
        bounds = bag_bounds(ids, offsets, include_last_offset)
        owner = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        bags = table.bag(
            ids[~hit],
            _before(~hit)[bounds],
            mode="sum" if mode == "mean" else mode,
            per_sample_weights=None if weights is None else weights[~hit],
            include_last_offset=True,
        )
        hit = hit[bounds[0] : bounds[-1]]  # ids behind the last bag belong to none
        slots, owner = slots[: int(hit.sum())], owner[hit]
        counted = _before(ids != table.spec.padding_id)
        counts = counted[bounds[1:]] - counted[bounds[:-1]]
        if mode == "max":
            bags[counts == np.bincount(owner, minlength=len(bags))] = -np.inf  # nothing but what is here
        own = None if weights is None else weights[: len(hit)][hit].astype(np.float32)
        block = max(1, BLOCK_VALUES // bags.shape[1])
        for start in range(0, len(slots), block):
            part = slice(start, start + block)
            rows = index.rows[slots[part]]
            if own is not None:
                rows *= own[part, None]
            (np.maximum if mode == "max" else np.add).at(bags, owner[part], rows)
        if mode == "mean":
            bags /= np.maximum(counts, 1).astype(np.float32)[:, None]
        bags[counts == 0] = 0
        with np.errstate(over="ignore"):
            return bags.astype(dtype, copy=False)


def _find(index: _Index, table: Table, ids: Ids) -> tuple[Ids, Ids]:
    """Which of ids (n,) have a row in the index: their positions (k,), ascending, and their slots (k,).

    The table's padding id has none, and a table with rows of another length has none at all.
    """
    if not len(index.ids) or index.rows.shape[1] != table.spec.embedding_dim:
        return NONE, NONE
    at = index.marks[index.hashes(ids)].nonzero()[0]
    if not len(at):
        return NONE, NONE
    wanted = ids[at]
    places = index.ids.searchsorted(wanted)
    places[places == len(index.ids)] = 0
    found = index.ids[places] == wanted
    if table.spec.padding_id is not None:
        found &= wanted != table.spec.padding_id
    return at[found], index.slots[places[found]]


def _before(marked: npt.NDArray[np.bool_]) -> Ids:
    """How many are marked before each position, (n + 1,)."""
    count = np.zeros(len(marked) + 1, dtype=np.int64)
    np.cumsum(marked, out=count[1:])
    return count
