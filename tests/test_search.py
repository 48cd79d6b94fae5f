"""Nearest rows against all rows' scores, plainly computed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfh_embed.errors import InputError
from hfh_embed.search import MAX_K, Stopped, nearest
from tests.builders import CASES, N, snapshot_of

METRICS = ("dot", "cosine", "l2")
FORMS = ("words-1", "line-8", "private", "map-4-bias", "residual", "coded-8", "padding-zero", "line-dim-1")


def _scores(rows: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    """Larger is nearer."""
    rows, query = rows.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return -((rows - query) ** 2).sum(axis=1)
    dots = (rows * query).sum(axis=1)
    if metric == "dot":
        return dots
    norms = np.sqrt((rows**2).sum(axis=1) * (query**2).sum())
    return np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)


def _fill(rows: np.ndarray):
    def fill(ids: np.ndarray, out: np.ndarray) -> None:
        out[:] = rows[ids]

    return fill


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_it_finds_what_a_full_sort_finds(form: str, metric: str, num_threads: int, monkeypatch) -> None:
    monkeypatch.setattr("hfh_embed.search.TILE_BYTES", 40_000)  # several tiles, the last one ragged
    table = snapshot_of(*CASES[form])["users"]
    rows = table.lookup(np.arange(N))
    queries = np.random.default_rng(3).normal(size=(5, table.embedding_dim)).astype(np.float32)
    padding = table.spec.padding_id
    for k in (1, 7, MAX_K):
        ids, scores = table.search(queries, k, metric=metric, num_threads=num_threads)
        assert ids.shape == scores.shape == (5, k)
        for query, own, given_scores in zip(queries, ids, scores, strict=True):
            every = _scores(rows, query, metric).astype(np.float32)
            if padding is not None:
                every[padding] = -np.inf
            best = np.lexsort((np.arange(N), -every))[:k]
            sign = -1 if metric == "l2" else 1
            assert np.allclose(sign * given_scores, every[best], rtol=1e-6, atol=1e-7)
            if (form, metric) != ("line-dim-1", "cosine"):  # every row is +1 or -1, but for its rounding
                assert np.array_equal(own, best)


def test_one_vector_gives_one_list() -> None:
    table = snapshot_of(*CASES["words-1"])["users"]
    ids, scores = table.search(table.lookup(17), 3, metric="cosine")
    assert ids.shape == scores.shape == (3,)
    assert ids[0] == 17
    assert scores[0] == pytest.approx(1)
    assert table.search(table.lookup(17), 1, metric="l2")[1][0] == 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("queries", [1, 5])
def test_equal_rows_come_by_ascending_id(metric: str, queries: int) -> None:
    kinds = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    rows = kinds[np.random.default_rng(1).integers(0, 3, 9_001)]
    found, _ = nearest(_fill(rows), len(rows), np.repeat(kinds[:1], queries, axis=0), 500, metric)
    equal = np.flatnonzero((rows == kinds[0]).all(axis=1))
    for own in found:
        assert np.array_equal(own, equal[:500])


@given(st.integers(1, 700), st.integers(1, 90), st.integers(1, 4), st.sampled_from(METRICS), st.integers(0, 2**32 - 1))
def test_any_size_with_many_ties(count: int, k: int, dim: int, metric: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.integers(-1, 2, (count, dim)).astype(np.float32)
    query = generator.integers(-2, 3, (1, dim)).astype(np.float32)
    ids, scores = nearest(_fill(rows), count, query, k, metric, num_threads=2)
    every = np.round(_scores(rows, query[0], metric), 9)
    best = np.lexsort((np.arange(count), -every))[:k]
    if metric == "cosine":  # parallel rows of different lengths differ in the last bit
        assert np.allclose(every[ids[0]], every[best])
    else:
        assert np.array_equal(ids[0], best)
        assert np.array_equal(np.abs(scores[0]), np.abs(every[best]).astype(np.float32))


def test_more_than_there_is_gives_what_there_is() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    ids, _ = nearest(_fill(rows), 4, np.ones((1, 3)), 10)
    assert ids.tolist() == [[3, 2, 1, 0]]
    assert nearest(_fill(rows), 4, np.ones((1, 3)), 10, without=3)[0].tolist() == [[2, 1, 0]]
    assert nearest(_fill(rows), 1, np.ones((1, 3)), 10, without=0)[0].shape == (1, 0)
    assert nearest(_fill(rows), 4, np.ones((0, 3)), 2)[0].shape == (0, 2)


def test_rows_that_are_not_finite_are_not_found() -> None:
    rows = np.ones((5, 2), dtype=np.float32)
    rows[1], rows[3] = np.nan, -np.inf
    ids, scores = nearest(_fill(rows), 5, np.ones((1, 2)), 5)
    assert ids.tolist() == [[0, 2, 4, -1, -1]]
    assert np.isnan(scores[0, 3:]).all()


def test_it_stops_when_told() -> None:
    calls = []

    def fill(ids: np.ndarray, out: np.ndarray) -> None:
        calls.append(len(ids))

    with pytest.raises(Stopped):
        nearest(fill, 10_000_000, np.ones((1, 64)), 5, stop=lambda: len(calls) == 2)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("vectors", "k", "metric", "message"),
    [
        (np.ones(39), 1, "dot", r"shape \(39,\); give numbers of shape \(40,\) or \(queries, 40\)"),
        (np.ones((1, 1, 40)), 1, "dot", r"shape \(1, 1, 40\)"),
        (["a"] * 40, 1, "dot", "<U1"),
        (np.full(40, np.nan), 1, "dot", "NaN"),
        (np.ones(40), 0, "dot", "k is 0; give an integer from 1 to 1,000"),
        (np.ones(40), 1_001, "dot", "k is 1001"),
        (np.ones(40), True, "dot", "k is True"),
        (np.ones(40), 1.5, "dot", r"k is 1\.5"),
        (np.ones(40), 1, "manhattan", "allowed are dot, cosine, l2"),
    ],
)
def test_what_cannot_be_searched_is_told(vectors, k, metric, message: str) -> None:
    with pytest.raises(InputError, match=message):
        snapshot_of(*CASES["words-1"])["users"].search(vectors, k, metric=metric)
