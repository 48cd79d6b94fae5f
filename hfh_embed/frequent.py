"""What the most frequent ids of a group of tables get: exact rows, of full width or in levels, for a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hfh_embed.bit_levels import Used, allotted
from hfh_embed.errors import InputError, RatioError, SpecError
from hfh_embed.layout import table_arrays
from hfh_embed.packing import packed_bytes
from hfh_embed.spec import ExactSpec, Level, LevelIndex, LevelsSpec, TableSpec

if TYPE_CHECKING:
    from hfh_embed.budget import Form

__all__ = [
    "Frequencies",
    "are_unequal",
    "exact_ids",
    "have_unequal_lengths",
    "kept_count",
    "kept_frequencies",
    "kept_ids",
    "level_ids",
    "most_frequent",
    "share_of_uses",
    "uses_worth_a_row",
    "with_exact",
    "with_levels",
]

Frequencies = Mapping[str, npt.NDArray[np.number]]
Ids = npt.NDArray[np.int64]

GROWTH = 4
"""How many times longer a level is than the one before."""
HOT_IDS, HOT_USES = 1 / 16, 0.5
"""Frequencies are unequal where so few of the ids have so many of the uses."""
NEARLY_SORTED = 0.99
"""First ids stand for the most frequent ones where they have at least this share of their uses: then nothing finds them."""


def are_unequal(frequencies: Frequencies) -> bool:
    """Whether few of the ids have most of the uses, as words and clicks do."""
    if not frequencies:
        return False
    counts = np.concatenate([np.asarray(seen, dtype=np.float64).reshape(-1) for seen in frequencies.values()])
    hot = max(1, int(len(counts) * HOT_IDS))
    return bool(np.partition(counts, -hot)[-hot:].sum() >= HOT_USES * counts.sum() > 0)


def have_unequal_lengths(lengths: Sequence[int]) -> bool:
    """The same of tables that are read equally often, about whose ids nothing else is known: whether most of them are short."""
    left, hot = sum(lengths) * HOT_IDS, 0.0
    for n in sorted(lengths):
        taken = min(1.0, left / n)
        left, hot = left - taken * n, hot + taken
    return hot >= HOT_USES * len(lengths)


def share_of_uses(frequencies: Frequencies, least_uses: int) -> float:
    """The share of all uses that the ids with so many have."""
    counts = np.concatenate([np.asarray(seen, dtype=np.float64).reshape(-1) for seen in frequencies.values()])
    return float(counts[counts >= least_uses].sum() / max(counts.sum(), 1e-300))


def uses_worth_a_row(
    tables: Mapping[str, tuple[int, int]], frequencies: Frequencies, entries: float, share: float
) -> int:
    """How many uses an id must have so that the rows of all that have them are at most so many entries in all; 0 where that
    leaves less than this share of all uses. ``tables``: name -> (num_embeddings, embedding_dim)."""
    counts = np.concatenate([np.asarray(frequencies[name], dtype=np.float64) for name in tables])
    rows = np.repeat([dim for _, dim in tables.values()], [n for n, _ in tables.values()])
    if len(rows) != len(counts):
        return 0  # the plan says what is wrong with them
    order = np.argsort(counts, kind="stable")
    rows, counts = rows[order], counts[order]
    above = np.cumsum(rows[::-1])[::-1]  # entries of an id and of all that are used more
    first = int(np.searchsorted(-above, -entries))
    if first == len(counts):
        return 0
    alike_before = first > 0 and counts[first - 1] == counts[first]
    least = int(np.ceil(counts[first])) + int(alike_before)
    return least if counts[counts >= least].sum() >= share * counts.sum() else 0


def with_exact(tables: list[TableSpec], bits: int, budget: int, frequencies: Frequencies) -> list[TableSpec]:
    """Give the most frequent ids of all tables together exact rows for ``budget`` bytes, their index counted."""
    costs = [_part_bytes(table.replace(exact=ExactSpec(1, bits)), "exact.") for table in tables]
    order, owner = _ranked(tables, frequencies)
    taken = order[np.cumsum(np.asarray(costs)[owner]) <= budget]
    per_table = np.bincount(owner[: len(taken)], minlength=len(tables))
    return [
        table.replace(exact=ExactSpec(int(count), bits)) if count else table
        for table, count in zip(tables, per_table, strict=True)
    ]


def with_levels(tables: list[TableSpec], form: Form, budget: int, frequencies: Frequencies) -> list[TableSpec]:
    """Give the most frequent ids of all tables together exact rows in levels for ``budget`` bytes, index and maps counted.

    With ``level_bits`` of 0 every id has a row of as many bits as its use is worth. Else each level has four times the ids of the one
    before. The first is as wide as can be; then widths fall as little as can be. Where the bytes do not hold all levels, the longest are
    left out.

    Raises:
        RatioError: every id needs a level, and the bytes do not hold them.
    """
    if form.level_bits == 0:
        return _by_use(tables, budget, frequencies)
    order, owner = _ranked(tables, frequencies)
    last = max(1, int(len(order) * form.level_cover))
    if form.shared:
        seen = sum(int(np.count_nonzero(frequencies[table.name])) for table in tables if table.name in frequencies)
        last = max(1, min(last, seen))
    ends = sorted({-(-last // GROWTH**back) for back in range(form.level_count)})
    while ends:
        counts = np.array(
            [np.bincount(owner[a:b], minlength=len(tables)) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        )
        made = [
            _made(table, form, counts[:, number], frequencies.get(table.name)) for number, table in enumerate(tables)
        ]
        indexes = sum(_index_bytes(table) for table in made)
        if (widths := _widths(made, form, counts, budget - indexes)) is not None:
            return [_narrowed(table, widths[:, n], counts[:, n]) for n, table in enumerate(made)]
        if not form.shared:
            break
        ends.pop()
    if form.shared:
        return tables
    raise RatioError(
        f"levels of every id need more than their {budget:,} bytes; give a smaller ratio, or level_bits below {form.level_bits}",
        nearest=1.0,
    )


def _ranked(tables: Sequence[TableSpec], frequencies: Frequencies) -> tuple[Ids, Ids]:
    """All ids of the tables with known frequencies, most frequent first: their running numbers and their tables'."""
    counts, owner = [], []
    for number, table in enumerate(tables):
        if table.name in frequencies:
            counts.append(_counts(table, frequencies[table.name]))
            owner.append(np.full(len(counts[-1]), number))
    if not counts:
        raise SpecError(
            "exact rows go to the most frequent ids; give frequencies, or set exact_share and level_share to 0"
        )
    order = np.argsort(-np.concatenate(counts), kind="stable")
    return order, np.concatenate(owner)[order]


def _made(table: TableSpec, form: Form, counts: Ids, frequencies: npt.NDArray[np.number] | None) -> TableSpec:
    """The table with levels of full width, and the index that costs least."""
    each = tuple(Level(int(n), form.level_bits, table.latent_dim, form.level_map_bits) for n in counts if n)
    if not each or frequencies is None:
        return table
    return _indexed(table, each, frequencies, form.level_adds)


def _indexed(
    table: TableSpec, each: tuple[Level, ...], frequencies: npt.NDArray[np.number] | None, adds: bool = False
) -> TableSpec:
    """The table with these levels, and the index that costs least: none where the first ids have to do."""
    ends = np.cumsum([level.count for level in each])
    if frequencies is None or _is_sorted(_counts(table, frequencies), ends):
        return table.replace(levels=LevelsSpec(each, LevelIndex.FIRST, adds))
    kinds = [table.replace(levels=LevelsSpec(each, index, adds)) for index in (LevelIndex.CODES, LevelIndex.IDS)]
    return min(kinds, key=_index_bytes)


def _by_use(tables: Sequence[TableSpec], budget: int, frequencies: Frequencies) -> list[TableSpec]:
    """Every id on a row of as many bits as its use is worth; what is not known of all tables is not used for any."""
    known = all(table.name in frequencies for table in tables)
    counts = [_counts(table, frequencies[table.name]) if known else None for table in tables]
    in_order = [seen is None or _is_sorted(seen, -(-len(seen) // np.array([64, 16, 4]))) for seen in counts]
    while True:
        used = [
            Used.unknown(table.num_embeddings, table.latent_dim)
            if seen is None
            else Used.counted(seen, table.latent_dim, ordered)
            for table, seen, ordered in zip(tables, counts, in_order, strict=True)
        ]
        each = allotted(used, budget)
        if each is None:
            raise RatioError(
                f"levels of every id need more than their {budget:,} bytes; give a smaller ratio", nearest=1.0
            )
        made = [_indexed(table, tuple(own), seen) for table, own, seen in zip(tables, each, counts, strict=True)]
        costs = [_index_bytes(table) > 0 for table in made]
        if not any(cost and free for cost, free in zip(costs, in_order, strict=True)):
            return made
        in_order = [free and not cost for cost, free in zip(costs, in_order, strict=True)]


def _is_sorted(counts: npt.NDArray[np.float64], ends: Ids) -> bool:
    """Whether the first ids are, all but a few uses, the most frequent ones."""
    first, best = np.cumsum(counts), np.cumsum(-np.sort(-counts))
    return all(first[end - 1] >= NEARLY_SORTED * best[end - 1] for end in ends.tolist() if end)


def _index_bytes(table: TableSpec) -> int:
    return _part_bytes(table, "levels.")


def _part_bytes(table: TableSpec, prefix: str) -> int:
    return sum(array.nbytes for name, array in table_arrays(table).items() if name.startswith(prefix))


def _widths(tables: Sequence[TableSpec], form: Form, counts: Ids, budget: int) -> Ids | None:
    """Widths of each level in each table, (levels, tables), that take at most ``budget`` bytes; None where there are none."""
    latent = np.array([table.latent_dim for table in tables])
    has = (counts > 0) & np.array([table.levels is not None for table in tables])
    map_bytes = np.array([packed_bytes(int(size), form.level_map_bits) for size in latent]) + 2 * (
        form.level_map_bits <= 8
    )

    def cost(chosen: Ids) -> Ids:
        return counts * -(-chosen * form.level_bits // 8) + np.where(chosen < latent, chosen * map_bytes, 0)

    def worthwhile(chosen: Ids) -> Ids:
        """Full width where few rows would need a large map."""
        return np.where(cost(chosen) < cost(np.broadcast_to(latent, chosen.shape)), chosen, latent)

    def widths(widest: float, fall: float) -> Ids:
        shares = widest / fall ** np.arange(len(counts))
        return worthwhile(np.maximum(1, (latent * shares[:, None]).astype(np.int64)))

    def fits(chosen: Ids) -> bool:
        return int(((cost(worthwhile(chosen)) + 4) * has).sum()) <= budget

    most = int(latent.max())
    for widest in range(most, 0, -1):
        if fits(widths(widest / most, form.level_fall)):
            falls = np.arange(1, form.level_fall + 0.001, 0.05)
            chosen = next(w for fall in (*falls, form.level_fall) if fits(w := widths(widest / most, float(fall))))
            return worthwhile(_filled(chosen, latent, fits))
    return None


def _filled(widths: Ids, latent: Ids, fits: Callable[[Ids], bool]) -> Ids:
    """Widths that take what bytes are left: every level a little wider where it still fits, the first ones first."""
    step = 8
    while step:
        wider = widths.copy()
        for level in range(len(widths)):
            trial = wider.copy()
            trial[level] = np.minimum(
                trial[level] + step, latent if level == 0 else np.maximum(trial[level], wider[level - 1])
            )
            if fits(trial):
                wider = trial
        if (wider == widths).all():
            step //= 2
        widths = wider
    return widths


def _narrowed(table: TableSpec, widths: Ids, counts: Ids) -> TableSpec:
    if table.levels is None or not counts.any():
        return table
    bits, map_bits = table.levels.each[0].bits, table.levels.each[0].map_bits
    each = tuple(Level(int(n), bits, int(w), map_bits) for n, w in zip(counts, widths, strict=True) if n)
    return table.replace(levels=LevelsSpec(each, table.levels.index, table.levels.adds))


def _counts(table: TableSpec, counts: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    weights: npt.NDArray[np.float64] = np.asarray(counts, dtype=np.float64)
    if weights.shape != (table.num_embeddings,):
        raise InputError(
            f"frequencies of table {table.name!r} have shape {weights.shape}; give one for each of its {table.num_embeddings} ids"
        )
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise InputError(f"frequencies of table {table.name!r} must be finite and not negative")
    return weights


def most_frequent(counts: npt.NDArray[np.number], count: int) -> Ids:
    """The ids of the ``count`` largest counts, ascending; of equal counts, the first ids."""
    order = np.argsort(-np.asarray(counts, dtype=np.float64), kind="stable")
    return np.sort(order[:count]).astype(np.int64)


def exact_ids(table: TableSpec, frequencies: npt.NDArray[np.number]) -> Ids:
    """The ids that get the table's exact rows, the most frequent ones, ascending: (count,) int64."""
    counts = _counts(table, frequencies)
    count = table.exact.count if table.exact is not None else 0
    return most_frequent(counts, count)


def kept_count(num_embeddings: int, row_nbytes: float, uses: npt.NDArray[np.number] | None, least_uses: int) -> int:
    """How many ids a table keeps: those with so many uses, or all where the rows of the others take less than the bits that find them.

    ``row_nbytes`` is what a row takes on average. Shares of uses, which are no whole numbers, do not tell how often an id is used.
    """
    if uses is None or not least_uses:
        return num_embeddings
    uses = np.asarray(uses)
    if not np.equal(np.floor(uses), uses).all():
        return num_embeddings
    count = max(1, int((uses >= least_uses).sum()))
    return count if (num_embeddings - count) * row_nbytes > num_embeddings / 8 else num_embeddings


def kept_frequencies(tables: Sequence[TableSpec], frequencies: Frequencies) -> Frequencies:
    """How often the kept ids of tables are used, by their places."""
    return {
        table.name: _counts(table, uses) if table.kept is None else _counts(table, uses)[kept_ids(table, uses)]
        for table in tables
        if (uses := frequencies.get(table.name)) is not None
    }


def kept_ids(table: TableSpec, frequencies: npt.NDArray[np.number]) -> Ids:
    """The ids that a table keeps, the most frequent ones, ascending: (count,) int64."""
    return most_frequent(_counts(table, frequencies), table.num_kept)


def level_ids(table: TableSpec, frequencies: npt.NDArray[np.number]) -> list[Ids]:
    """The ids of each of the table's levels, by falling frequency from level to level, ascending in each."""
    assert table.levels is not None
    ends = np.cumsum([level.count for level in table.levels.each])
    order = np.argsort(-_counts(table, frequencies), kind="stable")
    if table.levels.index is LevelIndex.FIRST:
        order = np.arange(table.num_embeddings)
    return [np.sort(ids).astype(np.int64) for ids in np.split(order[: ends[-1]], ends[:-1])]
