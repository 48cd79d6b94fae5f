"""How many bits the rows of each id get: more for ids that are used more, as few-bit rows in levels.

A row of b bits an entry misses a share DISTORTION[b] of its energy, and that matters as often as its id is used. So bytes go where they take
away most of the sum of uses x distortion. Where frequencies are not known, every table of a group is taken to be read equally often and its
ids alike, so that ids of short tables count more; within a table the first ids come first, the most frequent ones in many vocabularies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hfh_embed.packing import packed_bytes
from hfh_embed.spec import Level

__all__ = ["Used", "allotted", "least_bytes"]

DISTORTION: Mapping[int, float] = {1: 0.3634, 2: 0.1175, 4: 0.01154, 8: 0.0001}
"""Squared error of a Gaussian value in so many bits, in units of its variance: Max, "Quantizing for minimum distortion", 1960."""
MOST_KINDS = 4
"""Kinds of rows in one table: two bits name an id's."""
SCALE_BYTES, MAP_BITS, BYTE = 4, 8, 8
NARROWER = 4
"""Rows that are narrower than full have so many parts of the full width, in whole bytes."""
HALVINGS = 100

Kind = tuple[int, int]
"""Bits and width of a kind of rows."""


@dataclass(frozen=True)
class Used:
    """The ids of one table by falling use, in runs of ids that are used equally often: uses of one (runs,), and ids (runs,)."""

    length: int
    width: int
    """Entries of a row, before a map that all rows share."""
    uses: npt.NDArray[np.float64]
    ids: npt.NDArray[np.int64]
    in_order: bool
    """Whether the first ids are the most used ones, so that nothing has to find them."""

    @classmethod
    def unknown(cls, length: int, width: int) -> Used:
        """A table about whose ids nothing is known."""
        return cls(length, width, np.array([1 / length]), np.array([length]), True)

    @classmethod
    def counted(cls, counts: npt.NDArray[np.number], width: int, in_order: bool) -> Used:
        """A table whose ids are used so often: (n,) frequencies."""
        uses, ids = np.unique(np.asarray(counts, dtype=np.float64), return_counts=True)
        return cls(len(counts), width, uses[::-1], ids[::-1], in_order)

    def uses_of_first(self, count: int) -> float:
        """Uses of the ``count`` most used ids together."""
        left = np.clip(count - np.cumsum(self.ids) + self.ids, 0, self.ids)
        return float(self.uses @ left)


def allotted(tables: Sequence[Used], budget: int) -> list[list[Level]] | None:
    """The levels of each table, most bits first, that take at most ``budget`` bytes with what finds them; None where none are so small."""
    ranked = _Ranked(tables)
    splits = [_Split(ranked, kinds, budget) for kinds in _mixtures(tables)]
    fitting = [split for split in splits if split.fits()]
    return min(fitting, key=_Split.loss).levels() if fitting else None


def least_bytes(sizes: Sequence[tuple[int, int]]) -> int:
    """The fewest bytes in which every id of tables, each of (length, width), can have a row."""
    ranked = _Ranked([Used.unknown(length, width) for length, width in sizes])
    kinds = [(1, _widest(ranked.tables)), *_narrow(_widest(ranked.tables))]
    return min(_Split(ranked, (kind,), 0).nbytes() for kind in kinds)


def _mixtures(tables: Sequence[Used]) -> Iterator[tuple[Kind, ...]]:
    """Kinds of rows that may be used together, from few bits to many; at most one is narrower than the rows are."""
    widest = _widest(tables)
    full = [(bits, widest) for bits in DISTORTION]
    for number in range(1, MOST_KINDS + 1):
        yield from itertools.combinations(full, number)
        for narrow in _narrow(widest):
            yield from ((narrow, *others) for others in itertools.combinations(full, number - 1))


def _widest(tables: Sequence[Used]) -> int:
    return max(used.width for used in tables)


def _narrow(widest: int) -> list[Kind]:
    widths = {-(-widest * part // NARROWER // BYTE) * BYTE for part in range(1, NARROWER)}
    return [(1, width) for width in sorted(widths) if width < widest]


class _Ranked:
    """The runs of all tables together, by falling use."""

    def __init__(self, tables: Sequence[Used]) -> None:
        self.tables = tables
        uses = np.concatenate([used.uses for used in tables])
        order = np.argsort(-uses, kind="stable")
        self.falling = -uses[order]  # ascends, as searchsorted wants it
        self.owner = np.repeat(np.arange(len(tables)), [len(used.uses) for used in tables])[order]
        self.ids = np.concatenate([used.ids for used in tables])[order]

    def first(self, runs: int) -> npt.NDArray[np.int64]:
        """How many ids of each table are in the first runs."""
        counts = np.bincount(self.owner[:runs], self.ids[:runs], minlength=len(self.tables))
        return counts.astype(np.int64)


class _Split:
    """Ids of all tables on kinds of rows, from few bits to many, as well as a number of bytes allows."""

    def __init__(self, ranked: _Ranked, kinds: tuple[Kind, ...], budget: int) -> None:
        self.ranked, self.tables, self.budget = ranked, ranked.tables, budget
        self.kinds = [[_kind_in(used, kind) for kind in kinds] for used in self.tables]
        self.rows = np.array([[packed_bytes(width, bits) for bits, width in mine] for mine in self.kinds])
        self.firsts = np.zeros(
            (len(kinds), len(self.tables)), dtype=np.int64
        )  # ids of a kind and of all with more bits
        self.firsts[0] = [used.length for used in self.tables]
        if len(kinds) > 1 and self.fits():
            self._fill([_worth(low, high) for low, high in itertools.pairwise(kinds)])

    def fits(self) -> bool:
        """Whether the bytes are enough."""
        return self.nbytes() <= self.budget

    def nbytes(self) -> int:
        """Rows, scales, maps, and what finds an id's row."""
        own = self._own()
        maps = [
            _map_bytes(used, mine[0][1]) * bool(count)
            for used, mine, count in zip(self.tables, self.kinds, own[0], strict=True)
        ]
        index = [_index_bytes(used, int(many)) for used, many in zip(self.tables, (own > 0).sum(axis=0), strict=True)]
        return int((own * self.rows.T).sum() + SCALE_BYTES * (own > 0).sum() + sum(maps) + sum(index))

    def loss(self) -> float:
        """Uses x distortion of all ids."""
        total = 0.0
        for t, (used, mine) in enumerate(zip(self.tables, self.kinds, strict=True)):
            uses = [used.uses_of_first(int(count)) for count in self.firsts[:, t]]
            missed = [_missed(kind, used.width) for kind in mine]
            total += float(np.dot(missed, -np.diff(uses, append=0)))
        return total

    def levels(self) -> list[list[Level]]:
        """Of each table, most bits first."""
        own, made = self._own(), []
        for t, mine in enumerate(self.kinds):
            many: dict[Kind, int] = {}
            for kind, count in zip(reversed(mine), own[::-1, t].tolist(), strict=True):
                many[kind] = many.get(kind, 0) + count
            made.append([Level(count, bits, width, MAP_BITS) for (bits, width), count in many.items() if count])
        return made

    def _own(self) -> npt.NDArray[np.int64]:
        """Ids of each kind alone, (kinds, tables)."""
        return -np.diff(self.firsts, axis=0, append=0)

    def _fill(self, worth: Sequence[float]) -> None:
        """Give more bits to the ids that are used most, by one bound on uses x worth of a bit, then spend what that leaves."""
        ranked = self.ranked
        extra = np.diff(self.rows, axis=1)
        costs = [np.cumsum(ranked.ids * extra[ranked.owner, step]) for step in range(len(worth))]
        several = [_index_bytes(used, len(mine)) for used, mine in zip(self.tables, self.kinds, strict=True)]
        left = self.budget - self.nbytes() - sum(several) - SCALE_BYTES * self.firsts.size

        def runs(bound: float) -> list[int]:
            return [int(np.searchsorted(ranked.falling, -bound / gain, side="right")) for gain in worth]

        low, high = (
            np.log(max(float(x), 1e-300)) for x in (-ranked.falling[-1] * min(worth), -ranked.falling[0] * max(worth))
        )
        high += 1
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            cost = sum(int(costs[step][many - 1]) for step, many in enumerate(runs(np.exp(middle))) if many)
            low, high = (low, middle) if cost <= left else (middle, high)
        for step, many in enumerate(runs(np.exp(high)), start=1):
            self.firsts[step] = ranked.first(many)
        by_length = np.argsort([used.length for used in self.tables], kind="stable").tolist()
        left = self.budget - self.nbytes()
        for step in range(len(worth), 0, -1):
            for t in by_length:
                if 0 < extra[t, step - 1] <= left and self.firsts[step, t] < self.firsts[step - 1, t]:
                    self._extend(step, t, int(extra[t, step - 1]))
                    left = self.budget - self.nbytes()

    def _extend(self, step: int, t: int, extra: int) -> None:
        """Give as many more ids of a table so many bits as the bytes that are left allow."""
        before = int(self.firsts[step, t])
        more = int(self.firsts[step - 1, t]) - before
        while more > 0:
            self.firsts[step, t] = before + more
            if (over := self.nbytes() - self.budget) <= 0:
                return
            more -= -(-over // extra)
        self.firsts[step, t] = before


def _kind_in(table: Used, kind: Kind) -> Kind:
    """A kind of rows in one table: of full width where narrower rows would save less than their map takes."""
    bits, width = kind
    saved = table.length * (packed_bytes(table.width, bits) - packed_bytes(min(width, table.width), bits))
    return (bits, width) if width < table.width and saved > _map_bytes(table, width) else (bits, table.width)


def _map_bytes(table: Used, width: int) -> int:
    return width * (packed_bytes(table.width, MAP_BITS) + 2) if width < table.width else 0


def _index_bytes(used: Used, kinds: int) -> int:
    if used.in_order or kinds < 2:
        return 0
    return packed_bytes(used.length, 1 if kinds == 2 else 2)


def _worth(low: Kind, high: Kind) -> float:
    """Distortion that a bit more takes away."""
    gain = _missed(low, high[1]) - _missed(high, high[1])
    return gain / (high[0] * high[1] - low[0] * low[1])


def _missed(kind: Kind, whole: int) -> float:
    """The share of a row's energy that a kind misses."""
    bits, width = kind
    return 1 - min(width / whole, 1.0) * (1 - DISTORTION[bits])
