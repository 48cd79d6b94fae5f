"""The cache: the table's own rows, whatever was asked before, in bounded bytes."""

import asyncio
import gc
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hfh_embed
import service.reconstructor
from hfh_embed.errors import UnknownIdError
from service.cache import WAYS, RowCache
from service.settings import Settings
from service.state import State
from tests.builders import CASES, N, snapshot_of

TABLE, POOL = CASES["private"]  # its rows are bit for bit the same in any company; products of matrices are not
OWN = snapshot_of(TABLE, POOL)["users"]
ROW_BYTES = 4 * OWN.embedding_dim


class _Counted:
    """A table that tells which ids reach it."""

    def __init__(self) -> None:
        self.embedding_dim, self.asked = OWN.embedding_dim, []

    def lookup(self, ids, **options):
        self.asked += list(ids)
        return OWN.lookup(ids, **options)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40 * ROW_BYTES),
    st.lists(st.lists(st.integers(0, N - 1) | st.integers(0, 9), max_size=30), max_size=12),
    st.sampled_from([np.float32, np.float16]),
)
def test_rows_are_the_tables_own_whatever_was_asked_before(nbytes: int, requests, dtype) -> None:
    cache = RowCache(OWN, nbytes)
    for ids in requests:
        wanted = np.array(ids, dtype=np.int64)
        rows = cache.lookup(wanted, dtype=dtype)
        assert rows.dtype == dtype
        assert np.array_equal(rows, OWN.lookup(wanted, dtype=dtype))
    assert cache.hits + cache.misses == sum(map(len, requests))


def test_what_was_asked_is_not_computed_again() -> None:
    table = _Counted()
    cache = RowCache(table, 1_000 * ROW_BYTES)
    ids = np.array([0, 5, 5, N - 1])
    for _ in range(3):
        cache.lookup(ids)
    assert table.asked == [0, 5, 5, N - 1]
    assert (cache.hits, cache.misses) == (8, 4)


def test_the_oldest_row_of_a_set_gives_way() -> None:
    table = _Counted()
    cache = RowCache(table, WAYS * (ROW_BYTES + 8) + 1)  # a single set
    for id_ in range(WAYS + 1):
        cache.lookup(np.array([id_]))
    table.asked.clear()
    for id_ in (*range(1, WAYS + 1), 0):
        cache.lookup(np.array([id_]))
    assert table.asked == [0]


def test_callers_may_write_into_their_rows() -> None:
    cache = RowCache(OWN, 1_000 * ROW_BYTES)
    ids = np.array([1, 2])
    for _ in range(3):
        rows = cache.lookup(ids)
        assert np.array_equal(rows, OWN.lookup(ids))
        rows[:] = 7


@pytest.mark.parametrize("nbytes", [1, 10_000, 1_000_000])
def test_its_bytes_are_bounded(nbytes: int) -> None:
    cache = RowCache(OWN, nbytes)
    assert cache.nbytes <= max(nbytes, WAYS * (ROW_BYTES + 8) + 1)
    assert cache.nbytes > nbytes / 2 or nbytes == 1


def test_unknown_and_negative_ids_are_refused_as_before() -> None:
    cache = RowCache(OWN, 100 * ROW_BYTES)
    for ids in ([-1], [3, N], [-(2**63)], [2**63 - 1]):
        with pytest.raises(UnknownIdError):
            cache.lookup(np.array(ids))
    assert (cache.hits, cache.misses) == (0, 0)


def test_the_service_caches_dear_tables_only_and_counts(tmp_path, monkeypatch) -> None:
    snapshot_of(TABLE, POOL).save(tmp_path / "dear.hfh")
    ids = np.array([1, 2, 3])

    def ask(seconds: float) -> tuple[State, str]:
        monkeypatch.setattr(service.reconstructor, "call_s", lambda *_: seconds)
        state = State.load(Settings(paths=(tmp_path,), cache_bytes=100_000, batching="off"))
        for _ in range(2):
            rows = asyncio.run(state.reconstructor.lookup(state.catalog["users"], ids))
            assert np.array_equal(rows, OWN.lookup(ids))
        return state, state.metrics.render().decode()

    _, text = ask(1.0)
    assert 'hfh_cache_rows_total{result="hit",table="users"} 3.0' in text
    assert 'hfh_cache_rows_total{result="miss",table="users"} 3.0' in text
    assert "hfh_cache_rows_total{" not in ask(0.0)[1]


def test_a_cache_goes_with_its_table() -> None:
    caches: WeakKeyDictionary[hfh_embed.Table, RowCache] = WeakKeyDictionary()
    table = snapshot_of(TABLE, POOL)["users"]
    caches[table] = RowCache(table, 1_000)
    del table
    gc.collect()
    assert not caches
