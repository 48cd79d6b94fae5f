"""Which level an id is in: every way to store it says the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfh_embed import reference
from hfh_embed.level_index import LevelPlaces, index_arrays, problems
from hfh_embed.spec import Level, LevelIndex, LevelsSpec, PrivateSpec, TableSpec
from tests.builders import snapshot_of


def _table(counts: list[int], n: int, index: LevelIndex) -> TableSpec:
    levels = LevelsSpec(tuple(Level(count, 8, 2, 32) for count in counts), index)
    return TableSpec("users", n, 3, private=PrivateSpec(3, 8), levels=levels)


@given(
    counts=st.lists(st.integers(1, 400), min_size=1, max_size=15),
    rest=st.integers(0, 700),
    index=st.sampled_from([LevelIndex.CODES, LevelIndex.IDS]),
    seed=st.integers(0, 99),
)
def test_what_is_stored_is_found_again(counts: list[int], rest: int, index: LevelIndex, seed: int) -> None:
    n = sum(counts) + rest
    if len(counts) == 15 and not rest:
        n += 1
    table = _table(counts, n, index)
    drawn = np.random.default_rng(seed).permutation(n)
    members = [np.sort(ids) for ids in np.split(drawn[: sum(counts)], np.cumsum(counts)[:-1])]
    arrays = index_arrays(table, members)
    assert table.levels is not None
    assert problems(table.levels, n, arrays) is None
    level, place = LevelPlaces(table, arrays).find(np.arange(n))
    for number, ids in enumerate(members):
        assert (level[ids] == number).all()
        assert (place[ids] == np.arange(len(ids))).all()
    assert (level >= 0).sum() == sum(counts)


@pytest.mark.parametrize("index", LevelIndex)
def test_ids_outside_the_table_are_in_no_level(index: LevelIndex) -> None:
    table = _table([3, 5], 10, index)
    arrays = index_arrays(table, [np.arange(3), np.arange(3, 8)])
    level, place = LevelPlaces(table, arrays).find(np.array([-1, 10, 2**62, 8, 0, 7]))
    assert level.tolist() == [-1, -1, -1, -1, 0, 1]
    assert place.tolist() == [0, 0, 0, 0, 0, 4]


@pytest.mark.parametrize("index", LevelIndex)
def test_places_are_those_of_the_definition(index: LevelIndex) -> None:
    table = _table([7, 300, 100], 900, index)
    data = snapshot_of(table)["users"].data
    ids = np.arange(900)
    for mine, plain in zip(LevelPlaces(table, data.arrays).find(ids), reference.level_places(data, ids), strict=True):
        assert mine.tolist() == plain.tolist()


def test_the_first_ids_need_no_index() -> None:
    table = _table([3, 5], 10, LevelIndex.FIRST)
    assert index_arrays(table, [np.arange(3), np.arange(3, 8)]) == {}


def test_codes_are_one_two_or_four_bits() -> None:
    assert [LevelsSpec((Level(1, 4, 2),) * k).code_bits(20) for k in (1, 2, 3, 4, 15)] == [1, 2, 2, 4, 4]
    assert [LevelsSpec((Level(1, 4, 2),) * k).code_bits(k) for k in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 4]
