import numpy as np
import pytest

from hfh_embed.errors import InputError, UnknownIdError
from tests.builders import CASES, N, snapshot_of


@pytest.fixture(scope="module")
def table():
    return snapshot_of(*CASES["words-1"])["users"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1.5], "float64"),
        ([True, False], "bool"),
        (["1"], "give integers"),
        ([[1, 2], [3]], "not an array"),
        (np.array([2**63], dtype=np.uint64), "too large"),
        (np.array([2**64]), "give integers"),
        (None, "give integers"),
        (np.empty(0), "float64"),
    ],
)
def test_ids_that_are_not_integers_are_refused(table, ids, message: str) -> None:
    with pytest.raises(InputError, match=message):
        table.lookup(ids)


def test_ids_of_any_shape_keep_it(table) -> None:
    assert table.lookup(5).shape == (40,)
    assert table.lookup([[1, 2, 3]]).shape == (1, 3, 40)
    assert (table.lookup(5) == table.lookup([5])[0]).all()


def test_out_is_written_and_returned(table) -> None:
    out = np.empty((2, 40), dtype=np.float16)
    assert table.lookup([1, 2], out=out) is out
    assert (out == table.lookup([1, 2], dtype=np.float16)).all()


@pytest.mark.parametrize("out", [np.empty((2, 39), "f4"), np.empty((2, 40), "f8"), np.empty((40, 2), "f4").T])
def test_an_out_that_does_not_fit_is_refused(table, out) -> None:
    with pytest.raises(InputError, match="out is"):
        table.lookup([1, 2], out=out)


def test_other_dtypes_are_refused(table) -> None:
    with pytest.raises(InputError, match="float32 or float16"):
        table.lookup([1], dtype=np.float64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": [1, 2]}, "need offsets"),
        ({"ids": [1, 2], "offsets": [1]}, "starts at 0"),
        ({"ids": [1, 2], "offsets": [0, 2, 1]}, "must ascend"),
        ({"ids": [1, 2], "offsets": [0, 3]}, "within the 2 ids"),
        ({"ids": [1, 2], "offsets": []}, "no bag"),
        ({"ids": [1, 2], "offsets": [[0]]}, "dimensions"),
        ({"ids": [1, 2], "offsets": [0.0]}, "float64"),
        ({"ids": [[1, 2]], "offsets": [0]}, "leave offsets out"),
        ({"ids": [[[1]]]}, "3 dimensions"),
        ({"ids": [1], "offsets": [0], "mode": "median"}, "sum, mean and max"),
        ({"ids": [1], "offsets": [0], "per_sample_weights": [1.0]}, "go with mode 'sum'"),
        ({"ids": [1], "offsets": [0], "mode": "sum", "per_sample_weights": [1.0, 2.0]}, "ids' shape"),
        ({"ids": [1], "offsets": [], "include_last_offset": True}, "at least the end"),
    ],
)
def test_bags_that_do_not_fit_are_refused(table, arguments, message: str) -> None:
    with pytest.raises(InputError, match=message):
        table.bag(**arguments)


def test_unknown_ids_follow_the_policy() -> None:
    zero = snapshot_of(*CASES["padding-zero"])["users"]
    assert not zero.lookup([N, 2**63 - 1]).any()
    assert not zero.lookup(7).any()
    reconstructed = snapshot_of(*CASES["reconstruct"])["users"]
    assert reconstructed.lookup([N, 2**63 - 1]).any(axis=1).all()
    for table in (zero, reconstructed):
        with pytest.raises(UnknownIdError, match="negative"):
            table.lookup([-1])


def test_keys_without_a_vocabulary_are_hashed(table) -> None:
    ids = table.ids_of(["hello", "world", "hello"])
    assert ids[0] == ids[2] != ids[1]
    assert ((ids >= 0) & (ids < N)).all()
    for wrong in ("hello", [1]):
        with pytest.raises(InputError, match="list of strings"):
            table.ids_of(wrong)


def test_no_ids_at_an_odd_address_are_no_ids(table) -> None:
    ids = np.frombuffer(b"odd" + bytes(16), dtype=np.uint8)[3:3].view(np.int64)
    assert table.lookup(ids).shape == (0, table.embedding_dim)
    assert table.bag(ids, np.zeros(2, np.int64)).shape == (2, table.embedding_dim)
