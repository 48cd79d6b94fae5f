import json
from dataclasses import replace

import numpy as np
import pytest

from hfh_embed.errors import SpecError, TableNotFoundError
from hfh_embed.layout import SnapshotSpec
from hfh_embed.spec import (
    CodeChunk,
    CodedSpec,
    Locality,
    MapSpec,
    PoolSpec,
    PrivateSpec,
    SharedSpec,
    TableSpec,
    Unknown,
)
from hfh_embed.specjson import spec_from_json, spec_to_json
from tests.builders import CASES, random_arrays, shared_table

POOL = PoolSpec("pool", 5120)


@pytest.mark.parametrize("case", CASES)
def test_nbytes_are_the_bytes_of_the_arrays(case: str) -> None:
    table, pool = CASES[case]
    spec = SnapshotSpec((table,), (pool,) if pool else ())
    assert spec.nbytes == sum(array.nbytes for array in random_arrays(spec).values())
    assert sum(count for _, count in spec.parts()) == spec.nbytes


@pytest.mark.parametrize("case", CASES)
def test_a_spec_comes_back_from_json(case: str) -> None:
    table, pool = CASES[case]
    spec = SnapshotSpec((table,), (pool,) if pool else ())
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec


def test_tables_of_one_group_share_one_residual() -> None:
    table, pool = CASES["residual"]
    both = SnapshotSpec((table, table.replace(name="items")), (pool,))
    one = SnapshotSpec((table,), (pool,))
    assert both.nbytes == one.nbytes + 4  # the second table's scale
    with pytest.raises(SpecError, match="group"):
        SnapshotSpec((table, table.replace(name="items", residual=replace(table.residual, hidden=6))), (pool,))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PoolSpec("pool", 500), "whole 64-byte lines"),
        (lambda: PoolSpec("pool", 512, bits=3), "allowed are 1, 2, 4"),
        (lambda: PoolSpec("../pool", 512), "not usable"),
        (lambda: PoolSpec("pool", 512, reconstruction="product"), "product"),
        (lambda: PoolSpec("pool", 512, num_hashes=2), "leave the pool's num_hashes"),
        (lambda: SharedSpec("pool", 64, 0, chunk_size=48), "power of two"),
        (lambda: SharedSpec("pool", 64, 0, chunk_size=256), "power of two"),
        (lambda: SharedSpec("pool", 64, 0, num_hashes=6), "power of two"),
        (lambda: SharedSpec("pool", 64, 2**64), "key"),
        (lambda: SharedSpec("pool", 64, 0, lines=2), "only locality 'line'"),
        (lambda: PrivateSpec(4, 16, row_scale=True), "no row scale"),
        (lambda: CodedSpec(()), "give 1 to"),
        (lambda: TableSpec("t", 0, 4, private=PrivateSpec(4, 8)), "num_embeddings"),
        (lambda: TableSpec("t", 5, 4), "has no part"),
        (lambda: TableSpec("t", 5, 4, private=PrivateSpec(3, 8)), "belongs to no part"),
        (lambda: TableSpec("t", 5, 4, private=PrivateSpec(5, 8)), "the latent row has 4"),
        (lambda: TableSpec("t", 5, 4, private=PrivateSpec(2, 8), latent_dim=2), "need a map"),
        (lambda: TableSpec("t", 5, 4, private=PrivateSpec(4, 8), padding_id=5), "padding_id"),
        (lambda: TableSpec("t", 5, 4, private=PrivateSpec(4, 8), unknown=Unknown.RECONSTRUCT), "reconstruct"),
        (lambda: TableSpec("t", 5, 4, coded=CodedSpec((CodeChunk(2, 3, 8),))), "ends at entry 5"),
        (lambda: SnapshotSpec(()), "without tables"),
        (lambda: SnapshotSpec((shared_table(POOL),)), "no pool is named"),
        (lambda: SnapshotSpec((shared_table(POOL), shared_table(POOL)), (POOL,)), "more than one table"),
        (lambda: SnapshotSpec((shared_table(POOL),), (POOL, replace(POOL, name="other"))), "read by no table"),
        (lambda: SnapshotSpec((shared_table(POOL, num_hashes=16),), (POOL,)), "do not fit a line"),
        (
            lambda: SnapshotSpec(
                (shared_table(POOL, chunk_size=9, locality=Locality.LINE),), (replace(POOL, bits=32, slots=16),)
            ),
            None,
        ),
        (
            lambda: SnapshotSpec(
                (shared_table(POOL, chunk_size=17, locality=Locality.LINE),), (replace(POOL, bits=32),)
            ),
            "has 16 slots",
        ),
    ],
)
def test_the_impossible_is_refused(build, message: str | None) -> None:
    if message is None:
        build()
        return
    with pytest.raises((SpecError, ValueError), match=message):
        build()


def test_a_missing_table_lists_those_there_are() -> None:
    spec = SnapshotSpec((shared_table(POOL),), (POOL,))
    with pytest.raises(TableNotFoundError, match="there are users"):
        spec.table("items")


def test_every_array_is_aligned_in_the_file() -> None:
    table, pool = CASES["map-4-bias"]
    place = 0
    for array in SnapshotSpec((table,), (pool,)).arrays().values():
        assert place % array.dtype.itemsize == 0
        place += array.nbytes


def test_a_map_needs_no_larger_row() -> None:
    spec = TableSpec("t", 5, 4, private=PrivateSpec(9, 8), latent_dim=9, map=MapSpec())
    assert spec.latent_dim == 9
    assert np.isclose(spec.dense_nbytes, 80)
