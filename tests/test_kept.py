"""Tables that keep only some of their ids: where places are, and that nothing else has a row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfh_embed import reference, verify
from hfh_embed.budget import Form, plan
from hfh_embed.errors import DamagedError, SnapshotError, SpecError, UnknownIdError
from hfh_embed.kernels import backends
from hfh_embed.kernels.kept import KeptPlaces
from hfh_embed.layout import TableData
from hfh_embed.packing import pack
from hfh_embed.spec import KeptSpec, PrivateSpec, TableSpec, Unknown
from hfh_embed.specjson import spec_from_json, spec_to_json
from tests.builders import CASES, N, snapshot_of

USES = np.array([9, 0, 5, 4, 70, 1, 0, 5])


def _finders() -> list[object]:
    if "native" not in backends():
        return [None]
    from hfh_embed.kernels._native import kept_places

    return [None, kept_places]


def _data(bits: np.ndarray, count: int) -> TableData:
    table = TableSpec("users", len(bits), 3, private=PrivateSpec(3, 8), kept=KeptSpec(count), unknown=Unknown.ZERO)
    return TableData(table, None, {"kept.bits": pack(bits, 1)})


@pytest.mark.parametrize("find", _finders())
@given(n=st.integers(2, 3000), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_places_count_the_kept_ids_before(find: object, n: int, share: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    bits = (generator.random(n) < share).astype(np.uint8)
    bits[0], bits[-1] = 0, 1
    count = int(bits.sum())
    data = _data(bits, count)
    refused, places = KeptPlaces(data, find).of(np.concatenate((np.arange(n), [n, n + 63, 2**62])))
    assert refused == -1
    assert places[:n].tolist() == np.where(bits, np.cumsum(bits) - 1, count).tolist()
    assert (places[n:] == count).all()


@pytest.mark.parametrize("find", _finders())
def test_damaged_bits_give_no_place_outside_the_table(find: object) -> None:
    refused, places = KeptPlaces(_data(np.ones(1003, np.uint8), 40), find).of(np.arange(1003))
    assert refused == -1
    assert places[:40].tolist() == list(range(40))
    assert (places[40:] == 40).all()


def test_a_native_call_with_arrays_that_do_not_fit_is_refused() -> None:
    if "native" not in backends():
        pytest.skip("needs the compiled kernels")
    from hfh_embed.kernels._native import kept_places

    bits, before, ids = np.zeros(64, np.uint8), np.zeros(8, np.int64), np.zeros(4, np.int64)
    for wrong in (
        (bits, before, 513, 5, True, ids, ids.copy()),
        (bits, before[:7], 512, 5, True, ids, ids.copy()),
        (bits, before, 512, 5, True, ids, ids[:3].copy()),
        (bits, before, 0, 5, True, ids, ids.copy()),
    ):
        with pytest.raises(ValueError, match=r"fewer|length"):
            kept_places(*wrong)


@pytest.mark.parametrize("backend", backends())
def test_rows_of_other_ids_are_zeros_and_count_in_means(backend: str) -> None:
    table = snapshot_of(*CASES["kept"], kernels=backend)["users"]
    kept = np.unpackbits(table.data.arrays["kept.bits"], count=N, bitorder="little").astype(bool)
    kept[table.spec.padding_id] = False
    rows = table.lookup(np.arange(N))
    assert ((np.abs(rows).sum(axis=1) > 0) == kept).all()
    own, other = int(np.flatnonzero(kept)[0]), int(np.flatnonzero(~kept)[-1])
    assert np.allclose(table.bag([[own, other]], mode="mean")[0], rows[own] / 2)
    assert np.allclose(table.bag([[own, table.spec.padding_id]], mode="mean")[0], rows[own])
    assert (table.lookup(np.arange(N).reshape(17, 59)) == rows.reshape(17, 59, -1)).all()
    assert (table.lookup(int(own)) == rows[own]).all()


@pytest.mark.parametrize("backend", backends())
def test_ids_outside_are_refused_or_zeros_as_the_table_says(backend: str) -> None:
    table = snapshot_of(*CASES["kept-exact-map"], kernels=backend)["users"]
    for wrong in (-1, N, 2**63 - 1):
        with pytest.raises(UnknownIdError, match=str(wrong)):
            table.lookup(np.array([1, wrong, 2]))
        with pytest.raises(UnknownIdError, match=str(wrong)):
            table.bag([1, wrong, 2], [0, 1])
    lenient = snapshot_of(*CASES["kept"], kernels=backend)["users"]
    assert (lenient.lookup([N, 2**62]) == 0).all()
    with pytest.raises(UnknownIdError, match="-1"):
        lenient.lookup(np.array([0, -1]))


def test_the_definition_is_the_table_of_kept_ids() -> None:
    data = snapshot_of(*CASES["kept-levels"])["users"].data
    kept = np.flatnonzero(np.unpackbits(data.arrays["kept.bits"], count=N, bitorder="little"))
    inner = TableData(data.table.inner, data.pool, data.arrays)
    assert (reference.rows(data, kept) == reference.rows(inner, np.arange(len(kept)))).all()


def test_the_spec_goes_through_json_and_refuses_what_cannot_be() -> None:
    table, pool = CASES["kept"]
    spec = snapshot_of(table, pool).spec
    assert spec_from_json(spec_to_json(spec)) == spec
    assert table.inner.among(N).replace(padding_id=7) == table
    with pytest.raises(SpecError, match="leave kept out"):
        table.replace(kept=KeptSpec(N))
    with pytest.raises(SpecError, match="reconstructs no others"):
        table.replace(unknown=Unknown.RECONSTRUCT)
    document = spec_to_json(spec)
    document["tables"][0]["kept"] = {"count": -3}
    with pytest.raises(SnapshotError, match="kept ids"):
        spec_from_json(document)


def test_verifying_finds_another_number_of_kept_ids(tmp_path) -> None:
    snapshot = snapshot_of(*CASES["kept"])
    path = tmp_path / "a.hfh"
    snapshot.save(path)
    verify(path)
    snapshot.arrays["table/users/kept.bits"] = np.full_like(snapshot.arrays["table/users/kept.bits"], 255)
    snapshot.__dict__.pop("_checksums")
    snapshot.save(path)
    with pytest.raises(DamagedError, match="another number of ids is kept"):
        verify(path)


def test_rarely_used_ids_are_not_kept_where_that_saves_bytes() -> None:
    uses = np.repeat([1000, 10, 9, 0], [200, 300, 1500, 1000])
    spread = np.repeat([100, 12, 9, 0], [100, 400, 500, 2000])
    (table,) = plan({"t": (3000, 32)}, 300, frequencies={"t": spread}).tables
    assert table.kept == KeptSpec(500) and table.unknown is Unknown.ZERO and table.shared is not None
    (table,) = plan({"t": (3000, 32)}, 100, frequencies={"t": uses}).tables
    assert table.kept == KeptSpec(500) and table.levels is not None and table.levels.count == 500
    whole = plan({"t": (3000, 32)}, 32, frequencies={"t": uses}, least_uses=0)
    assert whole.tables[0].kept is None
    shares = plan({"t": (3000, 32)}, 32, frequencies={"t": uses / uses.sum()})
    assert shares.tables[0].kept is None, "shares do not say how often an id is used"
    sparse = plan({"t": (3000, 32)}, 32, frequencies={"t": np.minimum(uses, 9) * (np.arange(3000) < 100)})
    assert sparse.tables[0].kept is None, (
        "where hardly any use is of an often used id, counts are those of too little data"
    )
    more = plan({"t": (3000, 32)}, 300, frequencies={"t": np.repeat([1000, 500, 10, 0], [150, 50, 300, 2500])})
    assert more.tables[0].kept == KeptSpec(200) and more.tables[0].levels is not None, (
        "rows for those that have most uses"
    )
    few = plan({"t": (3000, 32)}, 1000, frequencies={"t": uses})
    assert few.tables[0].kept is None, "a bit for each id would take all bytes"
    with pytest.raises(SpecError, match="least_uses is -1"):
        Form(least_uses=-1)


@pytest.mark.parametrize("ratio", [8, 10, 32, 100, 300, 1000])
def test_a_plan_with_kept_ids_keeps_to_its_bytes(ratio: int) -> None:
    uses = np.random.default_rng(0).zipf(1.3, 20_000) - 1
    spec = plan({"a": (15_000, 32), "b": (5_000, 16)}, ratio, frequencies={"a": uses[:15_000], "b": uses[15_000:]})
    assert ratio <= spec.ratio


@pytest.mark.parametrize("case", ["kept", "kept-levels", "kept-trellis", "kept-exact-map"])
def test_snapshots_open_the_same(case: str, tmp_path) -> None:
    import hfh_embed

    snapshot = snapshot_of(*CASES[case])
    snapshot.save(tmp_path / "a.hfh")
    ids = np.arange(N)
    with hfh_embed.open(tmp_path / "a.hfh") as opened:
        assert (opened["users"].lookup(ids) == snapshot["users"].lookup(ids)).all()
