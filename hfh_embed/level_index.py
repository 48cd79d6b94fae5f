"""Which level an id's row is in, and where: what a table stores of it, and how that is read."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hfh_embed.layout import Array, table_arrays
from hfh_embed.packing import pack
from hfh_embed.spec import LevelIndex, LevelsSpec, TableSpec

__all__ = ["BLOCK_IDS", "LevelPlaces", "index_arrays", "problems"]

BLOCK_IDS = 256
"""Ids between two counts of each level, whole bytes of codes."""
Ids = npt.NDArray[np.int64]


class LevelPlaces:
    """The index of a table with levels, over its stored arrays. Damaged ones give wrong places, but never one outside a level."""

    def __init__(self, table: TableSpec, arrays: Mapping[str, Array]) -> None:
        assert table.levels is not None
        self._levels, self._n, self._arrays = table.levels, table.num_embeddings, arrays
        self.bounds: Ids = np.cumsum([0, *(level.count for level in table.levels.each)]).astype(np.int64)

    def find(self, ids: Ids) -> tuple[Ids, Ids]:
        """The level of each id (B,), -1 for none and for ids outside the table, and its place there (B,)."""
        match self._levels.index:
            case LevelIndex.FIRST:
                level = np.searchsorted(self.bounds, ids, side="right") - 1
                level[(ids < 0) | (ids >= self.bounds[-1])] = -1
                return level, np.where(level >= 0, ids - self.bounds[level], 0)
            case LevelIndex.IDS:
                return self._among_ids(ids)
        return self._by_codes(ids)

    def _among_ids(self, ids: Ids) -> tuple[Ids, Ids]:
        level, place = np.full(len(ids), -1), np.zeros(len(ids), dtype=np.int64)
        for number, own in enumerate(self._own):
            at = np.minimum(np.searchsorted(own, ids), len(own) - 1)
            hit = (own[at] == ids) & (level < 0)
            level[hit], place[hit] = number, at[hit]
        return level, place

    @functools.cached_property
    def _own(self) -> list[Array]:
        stored = self._arrays["levels.ids"]
        return [stored[a:b] for a, b in zip(self.bounds[:-1], self.bounds[1:], strict=True)]

    def _by_codes(self, ids: Ids) -> tuple[Ids, Ids]:
        known = (ids >= 0) & (ids < self._n)
        safe = np.where(known, ids, 0)
        block, within = np.divmod(safe, BLOCK_IDS)
        codes = self._codes(block)
        own = codes[np.arange(len(ids)), within]
        level = own.astype(np.int64) - self._levels.first_code(self._n)
        level[~known | (level >= len(self._levels.each))] = -1
        before = (codes == own[:, None]) & (np.arange(BLOCK_IDS) < within[:, None])
        place = self._counts[block, level] + before.sum(axis=1)
        inside = (level >= 0) & (place < np.diff(self.bounds)[level])
        return np.where(inside, level, -1), np.where(inside, place, 0)

    def _codes(self, block: Ids) -> npt.NDArray[np.uint8]:
        """The codes of whole blocks, (B, BLOCK_IDS); those behind the last id are nobody's."""
        bits = self._levels.code_bits(self._n)
        size = BLOCK_IDS * bits // 8
        stored = self._arrays["levels.codes"]
        where = block[:, None] * size + np.arange(size)
        packed = stored[np.minimum(where, len(stored) - 1)]
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes: npt.NDArray[np.uint8] = (packed[..., None] >> shifts & np.uint8((1 << bits) - 1)).reshape(-1, BLOCK_IDS)
        return codes

    @functools.cached_property
    def _counts(self) -> Ids:
        """How many ids of each level lie before a block, (blocks, levels); made at the first lookup, which reads all codes."""
        blocks = -(-self._n // BLOCK_IDS)
        counts = np.zeros((blocks + 1, len(self._levels.each)), dtype=np.int64)
        first = self._levels.first_code(self._n)
        for start in range(0, blocks, 4096):
            codes = self._codes(np.arange(start, min(start + 4096, blocks)))
            for level in range(len(self._levels.each)):
                counts[start + 1 : start + 1 + len(codes), level] = (codes == level + first).sum(axis=1)
        return counts.cumsum(axis=0)[:-1]


def index_arrays(table: TableSpec, members: Sequence[Ids]) -> dict[str, Array]:
    """What the index stores for levels with these ids, each (count,) and ascending."""
    levels, arrays = table.levels, table_arrays(table)
    assert levels is not None
    match levels.index:
        case LevelIndex.FIRST:
            return {}
        case LevelIndex.IDS:
            return {"levels.ids": np.concatenate(members).astype(arrays["levels.ids"].dtype)}
    first = levels.first_code(table.num_embeddings)
    codes = np.zeros(table.num_embeddings, dtype=np.uint8)
    for number, ids in enumerate(members):
        codes[ids] = number + first
    return {"levels.codes": pack(codes, levels.code_bits(table.num_embeddings))}


def problems(levels: LevelsSpec, num_embeddings: int, arrays: Mapping[str, Array]) -> str | None:
    """What is wrong with a stored index, None where nothing is. Reads all of it."""
    if levels.index is LevelIndex.IDS:
        bounds = np.cumsum([0, *(level.count for level in levels.each)])
        parts = [arrays["levels.ids"][a:b].astype(np.int64) for a, b in itertools.pairwise(bounds)]
        if any((np.diff(part) <= 0).any() for part in parts):
            return "ids of a level do not ascend"
        together = np.concatenate(parts)
        if len(np.unique(together)) < len(together):
            return "an id is in two levels"
        if together.min() < 0 or together.max() >= num_embeddings:
            return "an id is outside the table"
    if levels.index is LevelIndex.CODES:
        bits, first = levels.code_bits(num_embeddings), levels.first_code(num_embeddings)
        found = np.zeros(1 << bits, dtype=np.int64)
        stored = arrays["levels.codes"]
        for start in range(0, len(stored), 2**20):
            part = stored[start : start + 2**20]
            codes = part[:, None] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8((1 << bits) - 1)
            flat = codes.reshape(-1)[: num_embeddings - start * 8 // bits]
            found += np.bincount(flat, minlength=1 << bits)
        if found[first : first + len(levels.each)].tolist() != [level.count for level in levels.each]:
            return "codes do not name as many ids as the levels have rows"
    return None
