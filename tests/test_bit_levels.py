"""How many bits the rows of each id get for a number of bytes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfh_embed.bit_levels import DISTORTION, Used, allotted, least_bytes
from hfh_embed.budget import Form, plan
from hfh_embed.frequent import level_ids
from hfh_embed.layout import SnapshotSpec
from hfh_embed.spec import Level, LevelIndex, LevelsSpec, TableSpec

BY_USE = Form(shared=False, level_share=1, level_cover=1, level_bits=0)


def _spec(levels: list[list[Level]], widths: list[int]) -> SnapshotSpec:
    """Tables with these levels, their first ids in the first one, so that nothing is stored to find them."""
    return SnapshotSpec(
        tuple(
            TableSpec(f"t{k}", sum(level.count for level in own), width, levels=LevelsSpec(tuple(own)))
            for k, (own, width) in enumerate(zip(levels, widths, strict=True))
        )
    )


@given(
    sizes=st.lists(st.tuples(st.integers(1, 20_000), st.integers(1, 130)), min_size=1, max_size=5),
    bits=st.floats(0.2, 9),
    known=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_every_id_has_a_row_within_the_bytes(sizes: list[tuple[int, int]], bits: float, known: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    used = [
        Used.counted(-np.sort(-generator.zipf(1.5, n)), width, True) if known else Used.unknown(n, width)
        for n, width in sizes
    ]
    budget = int(sum(n * width for n, width in sizes) * bits / 8)
    levels = allotted(used, budget)
    assert (levels is None) == (budget < least_bytes(sizes))
    if levels is None:
        return
    spec = _spec(levels, [width for _, width in sizes])
    assert spec.nbytes <= budget
    assert [table.num_embeddings for table in spec.tables] == [n for n, _ in sizes]
    for own, (_, width) in zip(levels, sizes, strict=True):
        entries = [(level.bits, level.dim) for level in own]
        assert entries == sorted(entries, reverse=True) and len(set(entries)) == len(entries)
        assert all(level.dim == width or level.bits == 1 for level in own)


def test_bytes_are_spent_where_most_uses_lose_least() -> None:
    """Against all ways to divide twelve ids among four kinds of rows."""
    counts = np.array([900, 400, 180, 90, 60, 30, 20, 12, 6, 3, 2, 1])
    for budget in (60, 80, 100, 140, 200):
        levels = allotted([Used.counted(counts, 32, True)], budget)
        assert levels is not None
        bits = np.repeat([level.bits for level in levels[0]], [level.count for level in levels[0]])
        best = min(
            sum(count * DISTORTION[b] for count, b in zip(counts, each, strict=True))
            for each in itertools.combinations_with_replacement((8, 4, 2, 1), 12)
            if 4 * sum(each) + 4 * len(set(each)) <= budget
        )
        assert sum(counts * [DISTORTION[b] for b in bits]) <= 1.1 * best


def test_ids_that_are_used_more_never_have_fewer_bits() -> None:
    counts = np.random.default_rng(0).permutation((2e5 / (1 + np.arange(5_000))).astype(np.int64))
    (table,) = plan({"t": (5_000, 32)}, 20, form=BY_USE, frequencies={"t": counts}).tables
    assert table.levels is not None and table.levels.index is LevelIndex.CODES
    members = level_ids(table, counts)
    for more, less in itertools.pairwise(members):
        assert counts[more].min() >= counts[less].max()
    assert table.levels.each[0].bits == 8


def test_the_rarest_ids_are_narrower_where_a_bit_for_every_entry_is_too_much() -> None:
    (table,) = plan({"t": (50_000, 64)}, 50, form=BY_USE, frequencies={"t": 10**6 / (1 + np.arange(50_000))}).tables
    assert table.levels is not None and table.levels.index is LevelIndex.FIRST
    last = table.levels.each[-1]
    assert last.bits == 1 and last.dim in (16, 32, 48)
    assert all(level.dim == 64 for level in table.levels.each[:-1])


def test_without_frequencies_short_tables_come_first_and_then_first_ids() -> None:
    sizes = {"days": (7, 16), "stores": (300, 32), "products": (40_000, 32)}
    spec = plan(sizes, 12, form=BY_USE)
    bits = {
        table.name: [level.bits for level in table.levels.each] for table in spec.tables if table.levels is not None
    }
    assert bits["days"] == [8] and bits["stores"] == [8] and max(bits["products"]) <= 4
    assert all(table.levels is not None and table.levels.index is LevelIndex.FIRST for table in spec.tables)
    assert spec.ratio == pytest.approx(12, rel=0.001)


def test_many_tables_are_planned_at_once() -> None:
    generator = np.random.default_rng(0)
    sizes = {f"t{k}": (int(n), 16) for k, n in enumerate(generator.zipf(1.2, 300) % 10_000 + 10)}
    spec = plan(sizes, 12, form=BY_USE)
    assert spec.ratio == pytest.approx(12, rel=0.01)
