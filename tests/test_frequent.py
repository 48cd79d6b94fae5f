"""What frequent ids get for a number of bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfh_embed.budget import Form, plan
from hfh_embed.errors import InputError, RatioError, SpecError
from hfh_embed.frequent import are_unequal, level_ids
from hfh_embed.spec import LevelIndex

ALONE = Form(shared=False, level_share=1, level_cover=1, level_count=4)


def _words(n: int) -> np.ndarray:
    return 1e6 / (1.0 + np.arange(n))


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50_000), st.integers(1, 130)), min_size=1, max_size=4),
    ratio=st.floats(1, 300),
    form=st.sampled_from(
        [
            Form(level_share=0.5),
            Form(level_share=0.9, level_cover=1, level_count=5, level_adds=True, level_bits=2),
            Form(level_share=0.2, level_fall=1.5, level_map_bits=32, level_bits=8),
            ALONE,
        ]
    ),
    seed=st.integers(0, 9),
)
@settings(max_examples=100, deadline=None)
def test_the_bytes_of_levels_never_exceed_the_ratio(
    sizes: list[tuple[int, int]], ratio: float, form: Form, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    tables = {f"t{k}": size for k, size in enumerate(sizes)}
    frequencies = {name: generator.zipf(1.3, n) for name, (n, _) in tables.items()}
    try:
        spec = plan(tables, ratio, form=form, frequencies=frequencies)
    except RatioError:
        return
    assert spec.nbytes <= spec.dense_nbytes / ratio
    for table in spec.tables:
        if table.levels is not None and form.shared:
            ids = level_ids(table, frequencies[table.name])
            assert [len(own) for own in ids] == [level.count for level in table.levels.each]
            assert len(np.unique(np.concatenate(ids))) == table.levels.count
            whole, rows = table.embedding_dim, [level for level in table.levels.each if level.dim < table.embedding_dim]
            assert [level.dim for level in rows] == sorted((level.dim for level in rows), reverse=True)
            assert all(level.dim * whole < level.count * whole for level in rows), "a map larger than what it saves"


def test_words_by_falling_frequency_need_no_index() -> None:
    counts = _words(100_000)
    (table,) = plan({"t": (100_000, 64)}, 50, form=Form(level_share=0.6), frequencies={"t": counts}).tables
    assert table.levels is not None and table.levels.index is LevelIndex.FIRST
    assert [ids[-1] + 1 for ids in level_ids(table, counts)] == np.cumsum([x.count for x in table.levels.each]).tolist()


def test_a_few_ids_out_of_order_need_no_index_either() -> None:
    counts = _words(100_000)
    counts[0] = 0  # padding
    form = Form(level_share=0.6)
    (table,) = plan({"t": (100_000, 64)}, 50, form=form, frequencies={"t": counts}).tables
    assert table.levels is not None and table.levels.index is LevelIndex.FIRST


def test_ids_in_any_order_get_the_cheaper_index() -> None:
    counts = np.random.default_rng(0).permutation(_words(100_000))
    kinds = {}
    for cover in (0.02, 0.5):
        form = Form(level_share=0.6, level_cover=cover)
        (table,) = plan({"t": (100_000, 64)}, 50, form=form, frequencies={"t": counts}).tables
        assert table.levels is not None
        kinds[cover] = table.levels.index
    assert kinds == {0.02: LevelIndex.IDS, 0.5: LevelIndex.CODES}


def test_the_most_frequent_ids_of_all_tables_have_the_widest_rows() -> None:
    frequencies = {"hot": _words(1_000) + 10_000, "cold": _words(50_000) / 1e6}
    spec = plan({"hot": (1_000, 32), "cold": (50_000, 32)}, 20, form=Form(level_share=0.5), frequencies=frequencies)
    hot, cold = (spec.table(name).levels for name in ("hot", "cold"))
    assert hot is not None and cold is not None
    assert hot.count == 1_000
    assert max(level.dim for level in hot.each) >= max(level.dim for level in cold.each)


def test_ids_that_are_never_used_get_no_level() -> None:
    counts = np.zeros(10_000)
    counts[::100] = 5
    (table,) = plan({"t": (10_000, 32)}, 20, form=Form(level_share=0.5), frequencies={"t": counts}).tables
    assert table.levels is not None and table.levels.count == 100


def test_levels_that_cover_everything_need_no_pool() -> None:
    spec = plan({"t": (10_000, 32)}, 20, form=ALONE, frequencies={"t": _words(10_000)})
    assert spec.pools == () and spec.tables[0].levels is not None
    assert spec.tables[0].levels.count == 10_000
    with pytest.raises(RatioError, match=r"nearest ratio|levels of every id"):
        plan({"t": (10_000, 32)}, 300, form=ALONE, frequencies={"t": _words(10_000)})


def test_levels_without_frequencies_are_refused() -> None:
    with pytest.raises(SpecError, match="frequencies"):
        plan({"t": (10_000, 32)}, 20, form=Form(level_share=0.5))


def test_frequencies_that_do_not_fit_are_refused() -> None:
    for wrong in (np.ones(9), -np.ones(10), np.full(10, np.nan)):
        with pytest.raises(InputError):
            plan({"t": (10, 32)}, 2, form=Form(level_share=0.5), frequencies={"t": wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"level_share": 1.0},
        {"level_share": -0.1},
        {"level_share": 0.5, "level_cover": 0.0},
        {"level_share": 0.5, "level_count": 16},
        {"level_share": 0.5, "level_fall": 0.5},
        {"level_share": 0.5, "exact_share": 0.5},
        {"level_share": 0.5, "shared": False},
    ],
)
def test_impossible_rules_are_refused(wrong: dict) -> None:
    with pytest.raises(SpecError):
        Form(**wrong)


def test_words_and_clicks_are_unequal_and_others_are_not() -> None:
    generator = np.random.default_rng(0)
    assert are_unequal({"t": generator.permutation(_words(10_000))})
    assert not are_unequal({"t": np.ones(10_000)})
    assert not are_unequal({"t": generator.poisson(20, 10_000)})
    assert not are_unequal({"t": np.zeros(10)})
    assert not are_unequal({})
