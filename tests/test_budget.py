import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfh_embed.budget import PRESETS, Form, choose, plan
from hfh_embed.errors import InputError, RatioError, SpecError
from hfh_embed.frequent import exact_ids
from hfh_embed.spec import Locality, Reconstruction

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
    shared = plan({"t": (10_000, dim)}, 100).tables[0].shared
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
    with pytest.raises(InputError, match="frequencies of table 'users'"):
        plan(GROUP, 20, form=Form(exact_share=0.3), frequencies={"users": wrong})


@pytest.mark.parametrize(
    "arguments",
    [
        {"reconstruction": Reconstruction.MLP, "hidden": 4},
        {"exact_share": 1.0},
        {"shared": False},
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
    worth_a_row = 8 <= ratio <= 100  # beyond, an id has less than two bytes
    assert any(table.levels is not None for table in spec.tables) == worth_a_row


@pytest.mark.parametrize(("ratio", "bits"), [(8, 4), (10, 4), (16, 2), (32, 2), (100, 2)])
def test_alike_frequencies_give_every_id_a_row_of_few_bits(ratio: float, bits: int) -> None:
    spec = plan(GROUP, ratio, frequencies={name: np.full(n, 7) for name, (n, _) in GROUP.items()})
    assert 0.9 * spec.dense_nbytes / ratio <= spec.nbytes <= spec.dense_nbytes / ratio
    assert not spec.pools
    for table in spec.tables:
        assert table.levels is not None
        assert table.levels.count == table.num_embeddings
        assert {level.bits for level in table.levels.each} == {bits}


def test_alike_frequencies_give_rows_of_one_width_where_an_id_has_less_than_two_bytes() -> None:
    (table,) = plan({"t": (10_000, 32)}, 100, frequencies={"t": np.full(10_000, 7)}).tables
    assert table.levels is not None
    assert [(level.count, level.dim, level.bits) for level in table.levels.each] == [(10_000, 8, 1)]
    unequal = plan({"t": (10_000, 32)}, 100, frequencies={"t": 1 / (1 + np.arange(10_000))})
    assert unequal == plan({"t": (10_000, 32)}, 100)


def test_frequencies_of_some_tables_alone_or_at_ratios_without_rows_decide_nothing() -> None:
    some = {"users": 1 / (1 + np.arange(100_000))}
    assert plan(GROUP, 32, frequencies=some) == plan(GROUP, 32)
    even = {name: np.full(n, 7) for name, (n, _) in GROUP.items()}
    assert plan(GROUP, 1000, frequencies=even) == plan(GROUP, 1000)
