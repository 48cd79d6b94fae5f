"""Updating a snapshot: new and changed rows by the fit that it has, in every form, and what is refused."""

import numpy as np
import pytest

from hfh_embed import reference
from hfh_embed.codec import compress, update
from hfh_embed.codec.stored import put_bits
from hfh_embed.errors import InputError
from hfh_embed.layout import SnapshotSpec
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import PrivateSpec, TableSpec, Unknown
from tests.builders import CASES, N, random_arrays, snapshot_of

GENERATOR = np.random.default_rng(0)
SPECTRUM = 1 / np.sqrt(np.arange(1, 25))
ROTATION = np.linalg.qr(GENERATOR.normal(size=(24, 24)))[0]
CENTRES = GENERATOR.normal(size=(40, 24))
COUNT = 4_000


def _rows(kind: str, count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = (generator.normal(size=(count, 24)) * SPECTRUM) @ ROTATION + 0.1
    if kind == "clustered":
        rows = CENTRES[generator.integers(0, 40, count)] + 0.3 * rows
    if kind == "of many lengths":
        rows *= np.exp(0.4 * generator.normal(size=(count, 1)))
    return rows.astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "ratio", "method"),
    [
        ("plain", 2, "16 bits an entry"),
        ("plain", 7, "a row along"),
        ("plain", 20, "a row along"),
        ("clustered", 16, "codes of the whole row"),
        ("of many lengths", 10, "for its length"),
    ],
)
def test_new_rows_lose_as_little_as_those_that_the_fit_was_made_for(kind: str, ratio: float, method: str) -> None:
    rows, later = _rows(kind, COUNT, 1), _rows(kind, 1_000, 2)
    snapshot = compress(rows, ratio=ratio)
    assert method in snapshot.metadata["method"]
    kept = snapshot["table"].lookup(np.arange(COUNT))
    changed = np.arange(3, 3 + 5 * 400, 5)
    ids = np.concatenate((np.arange(COUNT, COUNT + 600), changed))
    made = update(snapshot, later, ids)
    assert (made.changed, made.added) == (400, 600)
    assert made.suits
    table = made.snapshot["table"]
    assert table.num_embeddings == COUNT + 600
    found = table.lookup(ids)
    error = float(((later - found) ** 2).sum() / (later**2).sum())
    assert made.relative_error == pytest.approx(error)
    assert error <= 1.25 * float(snapshot.metadata["relative error"]) + 1e-4
    others = np.setdiff1d(np.arange(COUNT), changed)
    assert np.array_equal(table.lookup(others), kept[others])
    assert np.array_equal(snapshot["table"].lookup(np.arange(COUNT)), kept), "the given snapshot was changed"
    assert np.abs(table.lookup(ids[:50]) - reference.rows(table.data, ids[:50])).max() < 1e-4


@pytest.mark.parametrize(("kind", "ratio"), [("plain", 7), ("clustered", 16), ("of many lengths", 10)])
def test_a_row_gets_the_codes_that_compress_gave_it(kind: str, ratio: float) -> None:
    rows = _rows(kind, COUNT, 1)
    snapshot = compress(rows, ratio=ratio)
    again = update(snapshot, rows[::-1], np.arange(COUNT)[::-1]).snapshot
    for name, array in snapshot.arrays.items():
        assert (again.arrays[name] == array).mean() > 0.999, name  # sums of another order may turn a tie


def test_rows_of_zeros_stay_zeros_until_they_get_others() -> None:
    rows, later = _rows("clustered", COUNT, 1), _rows("clustered", 4, 2)
    rows[[5, 99, 700]] = 0
    snapshot = compress(rows, ratio=16)
    assert "3 rows of zeros" in snapshot.metadata["method"]
    later[0] = 0
    some = update(snapshot, later[:2], [5, 99]).snapshot["table"]
    assert not some.lookup([5, 700]).any()
    assert some.lookup([99]).any()
    assert some.spec.exact is not None
    assert some.spec.exact.count == 2
    none = update(snapshot, later[1:], [5, 99, 700]).snapshot["table"]
    assert none.spec.exact is None
    found = none.lookup([5, 99, 700])
    assert ((found - later[1:]) ** 2).sum() < 0.5 * (later[1:] ** 2).sum()
    others = np.setdiff1d(np.arange(COUNT), [5, 99, 700])
    assert np.array_equal(none.lookup(others), snapshot["table"].lookup(others))


def test_rows_of_another_kind_are_told() -> None:
    snapshot = compress(_rows("plain", COUNT, 1), ratio=16)
    other = np.random.default_rng(3).normal(size=(300, 24)).astype(np.float32)
    made = update(snapshot, other, np.arange(300))
    assert made.suits is False
    assert made.own_error == float(snapshot.metadata["relative error"])
    assert "no longer suits" in made.to_text()
    again = update(made.snapshot, _rows("plain", 300, 4), np.arange(300))
    assert again.suits, "the fit's own error stays what it was"


def test_without_ids_the_rows_are_the_whole_table() -> None:
    rows = _rows("plain", COUNT + 50, 1)
    made = update(compress(rows[:COUNT], ratio=8), rows)
    assert (made.changed, made.added) == (COUNT, 50)
    assert made.suits


def test_exact_rows_stay_exact() -> None:
    snapshot = snapshot_of(CASES["trellis-bands"][0])
    exact = snapshot["users"].data.arrays["exact.ids"].astype(np.int64)
    rows = snapshot["users"].lookup(exact[::-1])
    found = update(snapshot, rows, exact).snapshot["users"].lookup(exact)
    assert ((found - rows) ** 2).sum() < 1e-3 * (rows**2).sum()


@pytest.mark.parametrize(
    "name",
    sorted(
        name for name, (table, pool) in CASES.items() if pool is None and table.levels is None and table.kept is None
    ),
)
def test_every_form_of_own_codes_takes_rows(name: str) -> None:
    table, _ = CASES[name]
    snapshot = snapshot_of(table)
    before = snapshot["users"].lookup(np.arange(N))
    ids = np.array([7, 0, N, N + 1, 512, 1_000])
    rows = snapshot["users"].lookup(np.array([1, 2, 3, 4, 5, 6]))
    made = update(snapshot, rows, ids).snapshot["users"]
    others = np.setdiff1d(np.arange(N), ids)
    assert np.array_equal(made.lookup(others), before[others])
    found = made.lookup(ids)
    assert np.isfinite(found).all()
    if table.trellis is None or not table.trellis.norm_bits:  # factors of random numbers are those of no rows
        assert ((found - rows) ** 2).sum() < 0.9 * (rows**2).sum()


@pytest.mark.parametrize("name", ["words-1", "residual"])
def test_shared_rows_cannot_be_encoded_alone(name: str) -> None:
    table, pool = CASES[name]
    with pytest.raises(InputError, match="single rows cannot be encoded"):
        update(snapshot_of(table, pool), np.ones((1, 40), dtype=np.float32), [0])


def test_keys_name_rows_and_new_keys_add_some() -> None:
    rows = _rows("plain", 500, 1)
    snapshot = compress(rows, ratio=4, vocabulary=[f"w{number}" for number in range(500)])
    later = _rows("plain", 3, 2)
    made = update(snapshot, later, keys=["new", "w7", "ünew"])
    table = made.snapshot["table"]
    assert table.ids_of(["w7", "new", "ünew", "w499"]).tolist() == [7, 500, 501, 499]
    assert np.abs(table.lookup([500, 7, 501]) - later).max() < 0.5
    by_id = update(snapshot, later, [3, 500, 501], keys=["a", "b"]).snapshot["table"]
    assert by_id.ids_of(["a", "b"]).tolist() == [500, 501]


def test_other_tables_of_a_snapshot_stay_as_they_are() -> None:
    tables = [CASES[name][0] for name in ("trellis", "coded-8")]
    spec = SnapshotSpec((tables[0], tables[1].replace(name="items", padding_id=5, unknown=Unknown.ZERO)))
    snapshot = Snapshot(spec, random_arrays(spec))
    made = update(snapshot, np.ones((1, 40), dtype=np.float32), [N], table="users")
    assert made.suits is None
    assert np.array_equal(made.snapshot["items"].lookup(np.arange(N)), snapshot["items"].lookup(np.arange(N)))
    with pytest.raises(InputError, match="padding"):
        update(snapshot, np.ones((1, 40), dtype=np.float32), [5], table="items")
    with pytest.raises(InputError, match="name one of users, items"):
        update(snapshot, np.ones((1, 40), dtype=np.float32), [5])


@pytest.mark.parametrize(
    ("rows", "ids", "message"),
    [
        (np.ones((2, 23), dtype=np.float32), [0, 1], "have 24"),
        (np.ones((2, 24), dtype=np.int32), [0, 1], "give floats"),
        (np.ones((2, 24), dtype=np.float32), [0], "one integer for each"),
        (np.ones((2, 24), dtype=np.float32), [0, 0], "appears twice"),
        (np.ones((2, 24), dtype=np.float32), [0, -1], "negative"),
        (np.ones((2, 24), dtype=np.float32), [500, 502], "none is 501"),
        (np.ones((2, 24), dtype=np.float32), [0.0, 1.0], "integer"),
        (np.full((2, 24), np.nan, dtype=np.float32), [0, 9], "ids 0, 9 hold NaN"),
        (np.ones((2, 24), dtype=np.float32), None, "the whole table"),
        (np.ones((0, 24), dtype=np.float32), [], "shape"),
    ],
)
def test_what_does_not_fit_is_refused(rows, ids, message: str) -> None:
    with pytest.raises(InputError, match=message):
        update(snapshot_of(TableSpec("t", 500, 24, private=PrivateSpec(24, 4))), rows, ids)


def test_keys_need_a_vocabulary() -> None:
    with pytest.raises(InputError, match="no vocabulary"):
        update(snapshot_of(CASES["private-alone"][0]), np.ones((1, 40), dtype=np.float32), keys=["a"])


@pytest.mark.parametrize("row_bits", [1, 3, 8, 13, 64])
def test_bits_are_put_in_their_places_and_nowhere_else(row_bits: int) -> None:
    generator = np.random.default_rng(row_bits)
    bits = generator.integers(0, 2, (101, row_bits)).astype(np.uint8)
    stream = np.packbits(bits.reshape(-1), bitorder="little")
    ids = generator.permutation(101)[:60]
    bits[ids] = generator.integers(0, 2, (60, row_bits))
    put_bits(stream, ids, bits[ids])
    assert np.array_equal(stream, np.packbits(bits.reshape(-1), bitorder="little"))


@pytest.mark.parametrize(
    "name", sorted(name for name, (table, _) in CASES.items() if table.levels is not None or table.kept is not None)
)
def test_trained_levels_and_tables_of_some_ids_are_refused(name: str) -> None:
    table, pool = CASES[name]
    snapshot = snapshot_of(table, pool)
    with pytest.raises(InputError, match=r"(levels that were trained|keeps .* of its).*compress the new dense table"):
        update(snapshot, snapshot["users"].lookup(np.arange(N)))
