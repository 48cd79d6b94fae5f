"""Rows written since the snapshot against a dense table that has them in it."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfh_embed.errors import InputError, UnknownIdError
from hfh_embed.lookup import Table
from service.fresh_rows import FreshRows
from tests.builders import CASES, N, snapshot_of

SMALL = 200


def table_of(case: str) -> Table:
    spec, pool = CASES[case]
    return snapshot_of(spec, pool)["users"]


def dense_of(table: Table, rows: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """What each id answers with the given rows in the table."""
    found = dict(enumerate(table.lookup(np.arange(N))))
    return found | {id_: row for id_, row in rows.items() if id_ != table.spec.padding_id}


def reference_bags(dense, ids, bounds, mode, weights, padding) -> np.ndarray:
    bags = []
    for start, end in itertools.pairwise(bounds):
        members = [(dense[id_], 1 if weights is None else weights[at]) for at, id_ in enumerate(ids)][start:end]
        kept = [
            np.float64(row) * weight
            for (row, weight), id_ in zip(members, ids[start:end], strict=True)
            if id_ != padding
        ]
        if not kept:
            bags.append(np.zeros(40))
        else:
            bags.append(np.max(kept, axis=0) if mode == "max" else np.sum(kept, axis=0))
            if mode == "mean":
                bags[-1] = bags[-1] / len(kept)
    return np.array(bags).reshape(len(bounds) - 1, 40)


def fresh_of(rows: dict[int, np.ndarray]) -> FreshRows:
    fresh = FreshRows()
    ids = np.array(list(rows), dtype=np.int64)
    if len(ids):
        fresh.put(ids, np.ones(len(ids), dtype=np.int64), np.array(list(rows.values()), dtype=np.float32))
    return fresh


@pytest.mark.parametrize("case", ["words-1", "padding-zero", "private-row-scale"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_lookups_and_bags_are_those_of_a_table_with_the_rows_in_it(case: str, data) -> None:
    table = table_of(case)
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    written = data.draw(st.sets(st.one_of(st.integers(0, SMALL), st.sampled_from([N, N + 5, 2**40, 2**63 - 1]))))
    rows = {id_: generator.normal(size=40).astype(np.float32) for id_ in written}
    fresh, dense = fresh_of(rows), dense_of(table, rows)
    askable = [*range(SMALL), *(id_ for id_ in written if id_ >= N)]
    ids = np.array(data.draw(st.lists(st.sampled_from(askable), max_size=60)), dtype=np.int64)
    wanted = np.array([dense[id_] for id_ in ids.tolist()], dtype=np.float32).reshape(len(ids), 40)
    assert np.array_equal(fresh.lookup(table, ids, np.float32), wanted)
    assert np.array_equal(fresh.lookup(table, ids, np.float16), wanted.astype(np.float16))

    inner = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    last = data.draw(st.booleans())
    offsets = np.array([0, *inner], dtype=np.int64)
    bounds = offsets.tolist() if last else [*offsets.tolist(), len(ids)]
    mode = data.draw(st.sampled_from(["sum", "mean", "max"]))
    weighted = mode == "sum" and data.draw(st.booleans())
    weights = generator.normal(size=len(ids)).astype(np.float32) if weighted else None
    bags = fresh.bag(
        table, ids, np.float32, offsets=offsets, mode=mode, per_sample_weights=weights, include_last_offset=last
    )
    expected = reference_bags(dense, ids.tolist(), bounds, mode, weights, table.spec.padding_id)
    assert np.allclose(bags, expected, rtol=1e-5, atol=1e-5), np.abs(bags - expected).max()


def test_an_unknown_id_is_still_refused_and_so_are_wrong_arguments() -> None:
    table, fresh = table_of("words-1"), fresh_of({3: np.ones(40), N: np.ones(40)})
    assert (fresh.lookup(table, np.array([N, 3]), np.float32) == 1).all()
    with pytest.raises(UnknownIdError, match=str(N + 1)):
        fresh.lookup(table, np.array([3, N + 1]), np.float32)
    with pytest.raises(UnknownIdError, match="-1"):
        fresh.bag(table, np.array([3, -1]), np.float32, offsets=np.array([0]))
    with pytest.raises(InputError, match="per_sample_weights"):
        fresh.bag(table, np.array([3]), np.float32, offsets=np.array([0]), per_sample_weights=np.ones(1))
    with pytest.raises(InputError, match="ids' shape"):
        fresh.bag(table, np.array([3]), np.float32, offsets=np.array([0]), mode="sum", per_sample_weights=np.ones(2))
    with pytest.raises(InputError, match="offsets"):
        fresh.bag(table, np.array([3]), np.float32, offsets=np.array([0, 9]))
    with pytest.raises(InputError, match="mode"):
        fresh.bag(table, np.array([3]), np.float32, offsets=np.array([0]), mode="median")  # type: ignore[arg-type]


def test_an_older_row_does_not_replace_a_newer_one() -> None:
    fresh = FreshRows()
    two = np.array([5, 9])
    fresh.put(two, np.array([10, 10]), np.full((2, 3), 1, np.float32))
    fresh.put(two, np.array([9, 11]), np.full((2, 3), 2, np.float32))
    ids, sequences, rows = fresh.contents()
    assert (ids.tolist(), sequences.tolist(), rows[:, 0].tolist()) == ([5, 9], [10, 11], [1, 2])
    assert fresh.drop(until=10) == 1
    assert fresh.contents()[0].tolist() == [9]
    assert fresh.drop(np.array([9, 77])) == 1
    assert (fresh.count, fresh.dim, fresh.nbytes) == (0, 0, 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 40), min_size=1)), max_size=30))
def test_any_order_of_writes_and_removals_leaves_what_a_dict_would_have(steps) -> None:
    fresh, expected = FreshRows(), {}
    for number, (written, chosen) in enumerate(steps, 1):
        ids = np.array(list(chosen), dtype=np.int64)
        if written:
            fresh.put(ids, np.full(len(ids), number), np.full((len(ids), 2), number, np.float32))
            expected |= dict.fromkeys(chosen, number)
        else:
            assert fresh.drop(ids) == len(expected.keys() & chosen)
            expected = {id_: value for id_, value in expected.items() if id_ not in chosen}
        ids, sequences, rows = fresh.contents()
        assert dict(zip(ids.tolist(), [row[0] for row in rows.tolist()], strict=True)) == expected
        assert ids.tolist() == sorted(expected)
        assert sequences.tolist() == [expected[id_] for id_ in ids.tolist()]


def test_rows_of_another_length_replace_all_and_other_tables_are_left_alone() -> None:
    table, fresh = table_of("words-1"), fresh_of({3: np.ones(12)})
    assert np.array_equal(fresh.lookup(table, np.array([3]), np.float32), table.lookup([3]))
    fresh.put(np.array([4]), np.array([2]), np.ones((1, 40), np.float32))
    assert (fresh.count, fresh.dim) == (1, 40)


def test_a_lookup_during_writes_sees_whole_rows() -> None:
    table, fresh = table_of("words-1"), FreshRows()
    ids, stop = np.arange(50), threading.Event()
    fresh.put(ids, np.zeros(50, np.int64), np.zeros((50, 40), np.float32))

    def write() -> None:
        for number in range(1, 2_000):
            fresh.put(ids, np.full(50, number), np.full((50, 40), number, np.float32))
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    last = 0.0
    while not stop.is_set():
        rows = fresh.lookup(table, ids, np.float32)
        assert (rows == rows[0, 0]).all() and rows[0, 0] >= last
        last = float(rows[0, 0])
    writer.join()
    assert (fresh.lookup(table, ids, np.float32) == 1_999).all()
