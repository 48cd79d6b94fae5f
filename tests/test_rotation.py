"""Raw rows: smaller, with the same geometry, and turned into rows by the rotation."""

import numpy as np
import pytest

from hfh_embed.codec import compress
from hfh_embed.errors import InputError
from hfh_embed.spec import MapSpec, PrivateSpec, TableSpec, Unknown
from tests.builders import CASES, N, snapshot_of

LATENT = TableSpec("users", N, 40, private=PrivateSpec(12, 4), latent_dim=12, map=MapSpec(8, bias=True))
TABLES = {
    "bias": LATENT.replace(padding_id=3, unknown=Unknown.ZERO),
    "no bias": LATENT.replace(map=MapSpec(32)),
    "trellis": CASES["trellis-tiny"][0],
}


@pytest.mark.parametrize("name", TABLES)
def test_raw_rows_have_the_geometry_of_the_rows(name: str) -> None:
    table = snapshot_of(TABLES[name])["users"]
    ids = np.array([0, 3, 7, 500, N - 1] + ([N + 5] if name == "bias" else []))
    rows, raw = table.lookup(ids), table.lookup(ids, raw=True)
    assert raw.shape == (len(ids), table.raw_dim)
    assert table.raw_dim < table.embedding_dim
    largest = np.abs(rows).max()
    assert np.abs(raw @ raw.T - rows @ rows.T).max() < 1e-4 * largest**2 * 40
    assert np.abs(raw @ table.rotation - rows).max() < 1e-5 * largest
    product = table.rotation @ table.rotation.T
    used = int(product.diagonal().round().sum())
    assert np.abs(product - np.diag(np.arange(table.raw_dim) < used)).max() < 1e-5
    assert table.lookup(ids, raw=True, dtype=np.float16).dtype == np.float16
    if name == "bias":
        assert not raw[[1, 5]].any()


def test_raw_rows_of_a_compressed_table() -> None:
    generator = np.random.default_rng(0)
    dense = generator.normal(size=(3_000, 4)) @ generator.normal(size=(4, 32)) + 0.1 * generator.normal(
        size=(3_000, 32)
    )
    table = compress(dense.astype(np.float32), ratio=32)["table"]
    ids = np.arange(200)
    rows, raw = table.lookup(ids), table.lookup(ids, raw=True)
    assert raw.shape[1] < 32
    assert np.allclose(raw @ raw.T, rows @ rows.T, atol=1e-3)


@pytest.mark.parametrize("name", ["private-alone", "residual", "coded-8", "words-1"])
def test_tables_without_a_smaller_form_refuse(name: str) -> None:
    table = snapshot_of(*CASES[name])["users"]
    assert table.raw_dim is None
    with pytest.raises(InputError, match="has no raw rows"):
        table.lookup([0], raw=True)
