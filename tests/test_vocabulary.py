import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfh_embed.errors import InputError, SnapshotError, UnknownIdError
from hfh_embed.vocabulary import Vocabulary
from tests.builders import CASES, N, snapshot_of

KEYS = [f"key {number}" for number in range(N)]


@given(st.lists(st.text(max_size=8), unique=True, max_size=60), st.lists(st.text(max_size=8), max_size=20))
def test_keys_are_found_and_others_are_not(keys: list[str], others: list[str]) -> None:
    keys = [key for key in keys if not any("\ud800" <= letter <= "\udfff" for letter in key)]
    vocabulary = Vocabulary.from_keys(keys)
    assert vocabulary.find(keys).tolist() == list(range(len(keys)))
    assert [vocabulary.key(id_) for id_ in range(len(keys))] == keys
    assert all((found >= 0) == (other in keys) for other, found in zip(others, vocabulary.find(others), strict=True))


def test_a_key_that_appears_twice_is_named() -> None:
    with pytest.raises(InputError, match="'b' appears twice"):
        Vocabulary.from_keys(["a", "b", "c", "b"])


def test_an_unknown_key_is_named_or_zero() -> None:
    table = snapshot_of(*CASES["words-1"], vocabularies={"users": KEYS})["users"]
    assert table.ids_of(["key 7", "key 0"]).tolist() == [7, 0]
    with pytest.raises(UnknownIdError, match="'nobody'"):
        table.ids_of(["key 7", "nobody"])
    zero = snapshot_of(*CASES["padding-zero"], vocabularies={"users": KEYS})["users"]
    assert not zero.lookup(zero.ids_of(["nobody"])).any()


def test_a_vocabulary_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(SnapshotError, match="2 keys for 1003 ids"):
        snapshot_of(*CASES["words-1"], vocabularies={"users": ["a", "b"]})


def test_damaged_offsets_are_an_error_not_a_crash() -> None:
    good = Vocabulary.from_keys(["a", "bb", "ccc"]).arrays
    for offsets in ([0, 5, 2, 99], [-9, 1, 3, 6], [3, 1, 0, 0]):
        with pytest.raises(SnapshotError, match="damaged"):
            Vocabulary(dict(good) | {"offsets": np.array(offsets)}).find(["a", "bb", "ccc"])
