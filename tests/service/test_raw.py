"""Raw rows over HTTP: by JSON, bytes and both clients, with fresh rows among them, and refused where there are none."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest

import hfh_embed
from hfh_embed.layout import SnapshotSpec
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import MapSpec, PrivateSpec, TableSpec
from service.client import AsyncClient, Client, ServiceError
from tests.builders import N, random_arrays
from tests.service.conftest import serving

IDS = [3, 0, N - 1]
BINARY = "application/octet-stream"


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A table with raw rows of 16 entries, and one without."""
    users = TableSpec("users", N, 40, private=PrivateSpec(12, 4), latent_dim=12, map=MapSpec(8, bias=True))
    spec = SnapshotSpec((users, TableSpec("plain", N, 8, private=PrivateSpec(8, 8))))
    path = tmp_path_factory.mktemp("raw") / "tables.hfh"
    Snapshot(spec, random_arrays(spec), vocabularies={"users": [f"key {n}" for n in range(N)]}).save(path)
    return path


@pytest.fixture(scope="module")
def url(path: Path) -> Iterator[str]:
    with serving(str(path)) as (url, _):
        yield url


def test_every_way_gives_the_raw_rows(path: Path, url: str) -> None:
    users = hfh_embed.open(path)["users"]
    raw = users.lookup(IDS, raw=True)
    assert raw.shape == (3, 16)
    with Client(url) as client:
        assert {t["name"]: t["raw_dim"] for t in client.tables()} == {"users": 16, "plain": None}
        assert np.array_equal(client.lookup("users", IDS, raw=True), raw)
        assert np.array_equal(client.lookup("users", IDS), users.lookup(IDS))
        found = client.lookup("users", keys=["key 3"], raw=True, dtype=np.float16)
        assert np.array_equal(found, users.lookup([3], raw=True, dtype=np.float16))
        several = client.lookup_several({"users": {"ids": IDS, "raw": True}, "plain": {"ids": [1], "raw": False}})
        assert several["users"].shape == (3, 16) and several["plain"].shape == (1, 8)
    body = msgpack.packb({"ids": IDS, "raw": True})
    headers = {"content-type": "application/msgpack", "accept": BINARY}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/tables/users/lookup", body, headers)) as answer:
        assert answer.headers["x-hfh-shape"] == "3,16"
        assert answer.read() == raw.tobytes()

    async def ask() -> np.ndarray:
        async with AsyncClient(url) as client:
            return await client.lookup("users", IDS, raw=True)

    assert np.array_equal(asyncio.run(ask()), raw)


def test_fresh_rows_come_raw_too(path: Path, url: str) -> None:
    users = hfh_embed.open(path)["users"]
    row = np.linspace(-1, 1, 40, dtype=np.float32)
    body = json.dumps({"ids": [5], "embeddings": [row.tolist()]}).encode()
    request = urllib.request.Request(
        f"{url}/v1/tables/users/rows", body, {"content-type": "application/json"}, method="PUT"
    )
    urllib.request.urlopen(request).close()
    with Client(url) as client:
        found = client.lookup("users", [5, 6], raw=True)
    assert np.allclose(found[0], users.rotation @ row, atol=1e-6)
    assert np.allclose(found[1], users.lookup([6], raw=True)[0], atol=1e-5)
    request = urllib.request.Request(
        f"{url}/v1/tables/users/rows", b'{"all": true}', {"content-type": "application/json"}, method="DELETE"
    )
    urllib.request.urlopen(request).close()


@pytest.mark.parametrize(
    ("path_", "body", "message"),
    [
        ("plain/lookup", {"ids": [1], "raw": True}, "has no raw rows"),
        ("users/lookup", {"ids": [1], "raw": "yes"}, "raw must be true or false"),
        ("users/bag", {"ids": [1], "offsets": [0], "raw": True}, "'raw' is not known"),
        ("plain/lookup?raw=true", None, "has no raw rows"),
        ("users/lookup?raw=maybe", None, "raw must be true or false"),
    ],
)
def test_what_makes_no_sense_is_refused(url: str, path_: str, body: dict[str, object] | None, message: str) -> None:
    content = np.array([1], "<i8").tobytes() if body is None else json.dumps(body).encode()
    headers = {"content-type": BINARY if body is None else "application/json"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/tables/{path_}", content, headers))
    assert refused.value.code == 422
    assert message in json.loads(refused.value.read())["error"]["message"]
    refused.value.close()


def test_clients_tell_the_refusal(url: str) -> None:
    with Client(url) as client, pytest.raises(ServiceError, match="has no raw rows"):
        client.lookup("plain", [1], raw=True)
