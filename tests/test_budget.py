import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfh_embed.budget import PRESETS, Form, choose, plan
from hfh_embed.errors import InputError, RatioError, SpecError
from hfh_embed.frequent import exact_ids
from hfh_embed.spec import LevelIndex, Locality, Reconstruction

GROUP = {"users": (100_000, 64), "items": (1_000, 32), "days": (7, 16)}


@pytest.mark.parametrize("ratio", [1, 2, 3.7, 4, 8, 10, 16, 24, 25.6, 32, 100, 300, 1000])
def test_the_bytes_never_exceed_the_ratio_and_nearly_reach_it(ratio: float) -> None:
    spec = plan(GROUP, ratio)
    assert spec.nbytes <= spec.dense_nbytes / ratio
    assert spec.nbytes >= spec.dense_nbytes / ratio - 64, "more than a line of the budget is left unused"


@given(
    tables=st.dictionaries(
        st.sampled_from("abcde"), st.tuples(st.integers(1, 10**7), st.integers(1, 512)), min_size=1, max_size=4
    ),
    ratio=st.floats(1, 5000),
    form=st.sampled_from([None, *PRESETS.values()]),
)
@settings(max_examples=200, deadline=None)
def test_any_group_gets_its_ratio_or_the_nearest_that_can_be_met(
    tables: dict[str, tuple[int, int]], ratio: float, form: Form | None
) -> None:
    try:
        spec = plan(tables, ratio, form=form)
    except RatioError as error:
        if error.nearest > 1:  # the refusal's own advice must work
            used = form or choose(ratio, tables)
            assert plan(tables, error.nearest, form=used).ratio >= error.nearest
        return
    assert spec.nbytes * ratio <= spec.dense_nbytes


def test_the_nearest_ratio_is_met_where_its_quotient_is_a_little_less_than_whole() -> None:
    for n in range(1, 40):
        with pytest.raises(RatioError) as error:
            plan({"t": (n, 5)}, 5000, form=Form(shared=False, private_bits=32))
        assert plan({"t": (n, 5)}, error.value.nearest, form=Form(shared=False, private_bits=32)).nbytes == 20 * n


@pytest.mark.parametrize("ratio", [0, 0.99, -5, float("nan"), float("inf"), "ten"])
def test_a_ratio_below_one_is_refused(ratio: float) -> None:
    with pytest.raises(RatioError, match="ratio is"):
        plan(GROUP, ratio)


def test_a_table_too_small_for_the_ratio_is_refused_with_the_nearest() -> None:
    with pytest.raises(RatioError, match=r"nearest ratio that can be met is 2\.3529") as caught:
        plan({"tiny": (10, 4)}, 100)
    assert caught.value.nearest == 2.3529


def test_a_table_smaller_than_the_smallest_pool_says_so() -> None:
    with pytest.raises(RatioError, match="keep them dense"):
        plan({"tiny": (2, 4)}, 2)


def test_no_tables_are_refused() -> None:
    with pytest.raises(SpecError, match="no tables"):
        plan({}, 10)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_meets_its_ratio(name: str) -> None:
    spec = plan({"users": (100_000, 64), "items": (1_000, 32)}, 10, form=PRESETS[name])
    assert 10 <= spec.ratio < 10.01


def test_rows_have_bits_of_their_own_only_while_a_fifth_is_left_to_share() -> None:
    assert [choose(ratio).private_bits for ratio in (8, 10, 16, 25.6, 25.7, 100)] == [2, 2, 1, 1, 0, 0]
    short = {"a": (1000, 32), "b": (1000, 8)}
    assert [choose(ratio, short).private_bits for ratio in (4, 7.9, 8, 16)] == [4, 2, 0, 0]
    assert choose(10, short | {"c": (1000, 33)}).private_bits == 2


def test_tables_of_one_pool_have_different_keys() -> None:
    keys = {table.shared.key for table in plan(GROUP, 100).tables if table.shared}
    assert len(keys) == len(GROUP)
    assert keys.isdisjoint({table.shared.key for table in plan(GROUP, 100, seed=1).tables if table.shared})


@pytest.mark.parametrize(
    ("dim", "words", "slots"), [(1, 16, 32), (32, 16, 32), (33, 8, 64), (64, 8, 64), (65, 4, 128), (128, 4, 128)]
)
def test_a_row_is_read_from_as_many_words_as_a_line_has_of_its_length(dim: int, words: int, slots: int) -> None:
    shared = plan({"t": (10_000, dim)}, 100, form=PRESETS["line"]).tables[0].shared
    assert shared is not None and (shared.num_hashes, shared.chunk_size, shared.num_chunks) == (words, slots, 1)


def test_beside_bits_of_their_own_short_rows_share_eight_words() -> None:
    shared = plan({"t": (10_000, 32)}, 10, form=Form(private_bits=2)).tables[0].shared
    assert shared is not None and (shared.num_hashes, shared.chunk_size) == (8, 64)


def test_exact_rows_go_to_the_most_frequent_ids_of_all_tables() -> None:
    frequencies = {"users": np.arange(100_000), "items": np.full(1_000, 10**6)}
    spec = plan(GROUP, 20, form=Form(exact_share=0.3, exact_bits=8), frequencies=frequencies)
    items, users = spec.table("items"), spec.table("users")
    assert items.exact is not None and items.exact.count == 1_000
    assert users.exact is not None and users.exact.count > 0
    chosen = exact_ids(users, frequencies["users"])
    assert chosen.tolist() == list(range(100_000 - users.exact.count, 100_000))
    assert spec.ratio >= 20


def test_exact_rows_without_frequencies_are_refused() -> None:
    with pytest.raises(SpecError, match="give frequencies"):
        plan(GROUP, 20, form=Form(exact_share=0.3))


@pytest.mark.parametrize("wrong", [np.ones(5), np.full(100_000, np.nan), np.full(100_000, -1.0)])
def test_wrong_frequencies_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match="frequencies of table 't'"):
        plan({"t": (100, 32)}, 20, frequencies={"t": np.append(np.full(50, 1000), wrong[:30])})
    with pytest.raises(InputError, match="frequencies of table 'users'"):
        plan(GROUP, 20, form=Form(exact_share=0.3), frequencies={"users": wrong})


@pytest.mark.parametrize(
    "arguments",
    [
        {"reconstruction": Reconstruction.MLP, "hidden": 4},
        {"exact_share": 1.0},
        {"shared": False},
        {"level_share": 0.5, "level_bits": 0},
        {"shared": False, "level_share": 1, "level_cover": 0.5, "level_bits": 0},
    ],
)
def test_impossible_forms_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        Form(**arguments)  # type: ignore[arg-type]


def test_a_latent_row_gets_a_map_only_where_the_row_is_longer() -> None:
    spec = plan(GROUP, 50, form=Form(latent_dim=32, locality=Locality.FREE, num_hashes=2, chunk_size=8))
    assert [table.map is not None for table in spec.tables] == [True, False, False]
    assert [table.latent_dim for table in spec.tables] == [32, 32, 16]


@pytest.mark.parametrize("ratio", [1, 4, 8, 10, 16, 17, 32, 100, 300, 1000, 3000])
def test_known_frequencies_keep_the_ratio_and_use_its_bytes(ratio: float) -> None:
    generator = np.random.default_rng(0)
    frequencies = {name: generator.permutation(1e6 / (1 + np.arange(n))) for name, (n, _) in GROUP.items()}
    spec = plan(GROUP, ratio, frequencies=frequencies)
    assert 0.97 * spec.dense_nbytes / ratio <= spec.nbytes <= spec.dense_nbytes / ratio
    worth_a_row = 8 <= ratio <= 32  # beyond, an entry has less than a bit
    assert any(table.levels is not None for table in spec.tables) == worth_a_row


@pytest.mark.parametrize("ratio", [8, 10, 16, 32])
@pytest.mark.parametrize("known", [True, False])
def test_ids_that_are_alike_have_rows_of_their_own_while_there_is_a_bit_for_every_entry(
    ratio: float, known: bool
) -> None:
    tables = {"users": (9_000, 32), "items": (10_000, 16)}
    frequencies = {name: np.full(n, 7) for name, (n, _) in tables.items()} if known else None
    spec = plan(tables, ratio, frequencies=frequencies)
    assert 0.99 * spec.dense_nbytes / ratio <= spec.nbytes <= spec.dense_nbytes / ratio
    assert not spec.pools
    fewest = int(32 / ratio) & -2 or 1
    for table in spec.tables:
        assert table.levels is not None and table.levels.index is LevelIndex.FIRST
        assert table.levels.count == table.num_embeddings
        assert {level.bits for level in table.levels.each} <= {fewest, fewest // 2, 2 * fewest, 4 * fewest}


def test_with_fewer_bits_alike_ids_have_some_of_their_own_beside_a_line() -> None:
    (table,) = plan({"t": (10_000, 32)}, 100).tables
    assert table.private is not None and (table.private.dim, table.private.bits) == (8, 1) and table.shared is not None
    assert plan({"t": (10_000, 32)}, 100, frequencies={"t": np.full(10_000, 7)}).tables == (table,)
    (shared,) = plan({"t": (10_000, 32)}, 110).tables
    assert shared.private is None and shared.shared is not None


def test_unequal_ids_share_everything_with_less_than_a_bit_for_an_entry() -> None:
    line = plan({"t": (10_000, 32)}, 100, form=PRESETS["line"])
    assert plan({"t": (10_000, 32)}, 100, frequencies={"t": 1 / (1 + np.arange(10_000))}) == line
    short = {f"field{k}": (20, 32) for k in range(5)} | {"products": (10_000, 32)}
    assert plan(short, 100) == plan(short, 100, form=PRESETS["line"])


def test_short_tables_have_more_bits_where_nothing_else_is_known() -> None:
    spec = plan({"week": (53, 32), "store": (400, 32), "product": (50_000, 32)}, 16)
    bits = {
        table.name: [level.bits for level in table.levels.each] for table in spec.tables if table.levels is not None
    }
    assert bits["week"] == [8] and bits["store"] == [8]
    assert max(bits["product"]) < 8


def test_a_table_too_small_for_rows_of_its_own_shares_its_bytes() -> None:
    table = plan({"t": (300, 1)}, 10).tables[0]
    assert table.shared is not None and table.levels is None


def test_frequencies_of_some_tables_alone_or_at_ratios_without_rows_decide_nothing() -> None:
    some = {"users": 1 / (1 + np.arange(100_000))}
    assert plan(GROUP, 32, frequencies=some) == plan(GROUP, 32)
    even = {name: np.full(n, 7) for name, (n, _) in GROUP.items()}
    assert plan(GROUP, 1000, frequencies=even) == plan(GROUP, 1000)
