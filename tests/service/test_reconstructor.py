"""Rows by batches: the same rows, one call, errors only where they belong."""

import asyncio
import time

import numpy as np
import pytest
from limits import parse

from hfh_embed.errors import UnknownIdError
from service.auth import Key
from service.calls import CALL, Call
from service.errors import ApiError
from service.settings import Settings
from service.state import State
from tests.builders import CASES, N, snapshot_of


class _Counting:
    """A served table that counts its kernel calls."""

    def __init__(self, served) -> None:
        self.served, self.table, self.calls = served, served.table, []

    def lookup(self, ids, dtype, cache=None):
        self.calls.append(len(ids))
        return self.served.lookup(ids, dtype)


@pytest.fixture
def make(snapshot_path):
    def make(**settings):
        state = State.load(Settings(paths=(snapshot_path,), **settings))
        return state, _Counting(state.catalog["users"])

    return make


def _ask(state, served, asked, dtype=np.float32):
    async def ask():
        calls = (state.reconstructor.lookup(served, np.asarray(ids, np.int64), dtype) for ids in asked)
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(ask())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_waits_together_is_computed_together(make, dtype) -> None:
    state, served = make(batching="on")
    asked = [[1], [2, 3], [], [0, N - 1, 5], [7] * 9]
    for ids, rows in zip(asked, _ask(state, served, asked, dtype), strict=True):
        assert rows.dtype == dtype
        assert np.array_equal(rows, served.table.lookup(np.array(ids, np.int64), dtype=dtype))
    assert served.calls == [15]
    assert state.in_flight.now == 0
    text = state.metrics.render().decode()
    assert "hfh_batch_ids_sum 15.0" in text
    assert 'hfh_ids_total{table="users"} 15.0' in text
    assert "hfh_request_ids_count 5.0" in text


def test_an_id_that_is_refused_spoils_no_other_answer(make) -> None:
    state, served = make(batching="on")
    asked = [[1], [N], [2], [-1, 3]]
    good, unknown, other, negative = _ask(state, served, asked)
    assert np.array_equal(good, served.table.lookup([1]))
    assert np.array_equal(other, served.table.lookup([2]))
    assert isinstance(unknown, UnknownIdError)
    assert isinstance(negative, UnknownIdError)
    assert str(N) in str(unknown)
    assert state.in_flight.now == 0


def test_a_batch_is_bounded_in_ids(make) -> None:
    state, served = make(batching="on", max_batch_ids=10)
    _ask(state, served, [[1] * 4] * 8 + [[1] * 11])
    assert sorted(served.calls) == [8, 11, 12, 12]  # a large request goes straight through


def test_kinds_of_rows_are_not_mixed(make) -> None:
    state, served = make(batching="on")

    async def ask():
        lookup = state.reconstructor.lookup
        return await asyncio.gather(
            lookup(served, np.array([1]), np.float32), lookup(served, np.array([1]), np.float16)
        )

    full, half = asyncio.run(ask())
    assert (full.dtype, half.dtype) == (np.float32, np.float16)
    assert served.calls == [1, 1]


def test_capacity_counts_what_waits(make) -> None:
    state, served = make(batching="on", max_in_flight_ids=5)
    first, second, third = _ask(state, served, [[1, 2, 3], [4, 5, 6], [7, 8]])
    assert first.shape == (3, 40)
    assert isinstance(second, ApiError)
    assert second.status == 429
    assert third.shape == (2, 40)
    assert state.in_flight.now == 0


def test_a_batch_may_be_told_to_wait(make) -> None:
    state, served = make(batching="on", max_wait_us=50_000)

    async def ask():
        first = asyncio.ensure_future(state.reconstructor.lookup(served, np.array([1])))
        await asyncio.sleep(0.005)
        second = asyncio.ensure_future(state.reconstructor.lookup(served, np.array([2])))
        await asyncio.gather(first, second)

    asyncio.run(ask())
    assert served.calls == [2]


def test_one_that_stops_waiting_harms_no_one(make) -> None:
    state, served = make(batching="on")

    async def ask():
        lookup = state.reconstructor.lookup
        impatient = asyncio.ensure_future(lookup(served, np.array([1])))
        patient = asyncio.ensure_future(lookup(served, np.array([2])))
        asyncio.get_running_loop().call_soon(impatient.cancel)
        return await asyncio.gather(impatient, patient, return_exceptions=True)

    impatient, patient = asyncio.run(ask())
    assert isinstance(impatient, asyncio.CancelledError)
    assert np.array_equal(patient, served.table.lookup([2]))
    assert state.in_flight.now == 0


def test_what_no_one_waits_for_any_more_is_not_computed(make) -> None:
    state, served = make(batching="on", max_wait_us=20_000)

    async def ask(ids, deadline_s):
        call = Call(None)
        call.deadline_s = time.monotonic() + deadline_s
        CALL.set(call)
        return await state.reconstructor.lookup(served, np.array(ids))

    async def both():
        return await asyncio.gather(ask([1, 2], 0.005), ask([3], 10), return_exceptions=True)

    late, timely = asyncio.run(both())
    assert isinstance(late, ApiError)
    assert late.status == 504
    assert np.array_equal(timely, served.table.lookup([3]))
    assert served.calls == [1]
    assert state.in_flight.now == 0


def test_a_batched_lookup_is_counted_against_its_keys_rate(make) -> None:
    state, served = make(batching="on")

    async def ask():
        call = Call(None)
        call.key, call.rates = Key("slow", 1, b"", parse("3/minute")), state.rates
        CALL.set(call)
        await state.reconstructor.lookup(served, np.array([1, 2]))
        with pytest.raises(ApiError, match="'slow' may ask for"):
            await state.reconstructor.lookup(served, np.array([1, 2]))

    asyncio.run(ask())


@pytest.mark.parametrize(("batching", "batched"), [("on", True), ("off", False)])
def test_batching_can_be_switched(make, batching: str, batched: bool) -> None:
    state, served = make(batching=batching)
    assert state.reconstructor.batches(served, 5) is batched


def test_only_dear_tables_are_batched_by_default(make) -> None:
    state, served = make()
    table, _ = CASES["coded-8"]
    dear = snapshot_of(table, kernels="numpy")["users"]
    lookup, calls = dear.lookup, 0

    def slow(ids, **options):
        nonlocal calls
        calls += 1
        time.sleep(0.001)
        return lookup(ids, **options)

    dear.lookup = slow
    served.table = dear
    assert state.reconstructor.batches(served, 5)
    measured = calls
    assert state.reconstructor.batches(served, 5)
    assert calls == measured > 0  # once is enough
