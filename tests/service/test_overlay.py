"""Writing rows without Redis: every form of a write, what is refused, what is bounded."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest
from starlette.testclient import TestClient

import hfh_embed
from service.app import create_app
from service.settings import Settings
from service.state import State
from tests.builders import N
from tests.service.conftest import LIMITS, serving

ROWS = "/v1/tables/users/rows"
BINARY = {"content-type": "application/octet-stream"}


@pytest.fixture
def client(snapshot_path: Path) -> Iterator[TestClient]:
    settings = Settings(paths=(snapshot_path,), overlay_max_rows=20, **LIMITS)  # type: ignore[arg-type]
    with TestClient(create_app(State.load(settings)), raise_server_exceptions=False) as client:
        yield client


def rows_of(client: TestClient, ids: list[int], table: str = "users") -> np.ndarray:
    answer = client.post(f"/v1/tables/{table}/lookup", json={"ids": ids})
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["embeddings"], dtype=np.float32)


def error_of(answer) -> tuple[int, str, str]:
    error = answer.json()["error"]
    assert answer.status_code == error["status"]
    return error["status"], error["type"], error["message"]


def test_a_written_row_is_served_from_the_next_request_on_and_gone_after_a_delete(client, snapshot_path) -> None:
    reference = hfh_embed.open(snapshot_path)["users"]
    row = np.arange(40, dtype=np.float32) / 8
    written = client.put(ROWS, json={"ids": [5, N + 3], "embeddings": [row.tolist(), (-row).tolist()]}).json()
    assert written["rows"] == 2 and written["sequence"] > 0
    found = rows_of(client, [4, 5, N + 3])
    assert np.array_equal(found, np.stack([reference.lookup([4])[0], row, -row]))
    bag = client.post("/v1/tables/users/bag", json={"ids": [4, 5, N + 3], "offsets": [0, 1], "mode": "sum"}).json()
    assert np.allclose(bag["embeddings"], [found[0], found[1] + found[2]])
    tables = {table["name"]: table for table in client.get("/v1/tables").json()["tables"]}
    assert (tables["users"]["overlay_rows"], tables["goods"]["overlay_rows"]) == (2, 0)
    assert 'hfh_overlay_rows{table="users"} 2.0' in client.get("/metrics").text
    removed = client.request("DELETE", ROWS, json={"ids": [5, 5, 6]}).json()
    assert removed["rows"] == 1
    assert np.array_equal(rows_of(client, [5]), reference.lookup([5]))
    assert client.request("DELETE", ROWS, json={"all": True}).json()["rows"] == 1
    assert client.get(ROWS).json()["ids"] == []


def test_json_msgpack_and_bytes_write_the_same(client) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 40)).astype("<f4")
    ids = np.array([7, 0, 2**63 - 1], dtype="<i8")
    packed = msgpack.packb({"ids": ids.tobytes(), "embeddings": rows.tobytes()})
    binary = np.int64(3).tobytes() + ids.tobytes() + rows.tobytes()
    for content, headers in (
        (packed, {"content-type": "application/msgpack"}),
        (binary, BINARY),
    ):
        assert client.put(ROWS, content=content, headers=headers).json()["rows"] == 3
        assert np.array_equal(rows_of(client, ids.tolist()), rows)
        client.request("DELETE", ROWS, json={"all": True})
    client.put(ROWS, json={"ids": ids.tolist(), "embeddings": rows.tolist()})
    assert np.array_equal(rows_of(client, ids.tolist()), rows)


def test_rows_are_written_by_key_too(client) -> None:
    client.put(ROWS, json={"keys": ["key 12"], "embeddings": [[1.0] * 40]})
    assert client.get(ROWS).json()["ids"] == [12]
    assert error_of(client.put(ROWS, json={"keys": ["nobody"], "embeddings": [[1.0] * 40]}))[1] == "invalid_value"
    assert client.request("DELETE", ROWS, json={"keys": ["key 12"]}).json()["rows"] == 1


def test_ids_are_listed_by_pages(client) -> None:
    client.put(ROWS, json={"ids": [9, 3, 5, 2**40], "embeddings": [[0.5] * 40] * 4})
    first = client.get(ROWS, params={"limit": 3}).json()
    assert (first["ids"], first["next"], first["count"], first["store"]) == ([3, 5, 9], 9, 4, "process")
    second = client.get(ROWS, params={"limit": 3, "after": first["next"]}).json()
    assert (second["ids"], second["next"]) == ([2**40], None)
    assert client.get(ROWS, params={"limit": 0}).status_code == 422


ONE = [[0.0] * 40]


@pytest.mark.parametrize(
    ("document", "status", "message"),
    [
        ({"ids": [1], "embeddings": [[0.0] * 39]}, 422, "40 numbers"),
        ({"ids": [1, 2], "embeddings": ONE}, 422, "one row for each id"),
        ({"ids": [1, 1], "embeddings": ONE * 2}, 422, "two rows"),
        ({"ids": [-1], "embeddings": ONE}, 422, "negative"),
        ({"ids": [2**63], "embeddings": ONE}, 422, "64 bits"),
        ({"ids": [], "embeddings": []}, 422, "at least one"),
        ({"ids": [1], "embeddings": [[1e39] * 40]}, 422, "finite"),
        ({"ids": [1], "embeddings": [["x"] * 40]}, 422, "numbers"),
        ({"ids": [1], "keys": ["a"], "embeddings": ONE}, 422, "either ids or keys"),
        ({"embeddings": ONE}, 422, "either ids or keys"),
        ({"ids": [1]}, 422, "embeddings"),
        ({"ids": [1], "embeddings": ONE, "colour": 1}, 422, "not known"),
        ({"ids": list(range(21)), "embeddings": ONE * 21}, 413, "at most 20 rows"),
        ([1], 400, "object"),
    ],
)
def test_what_cannot_be_written_is_told_and_changes_nothing(client, document, status: int, message: str) -> None:
    found = error_of(client.put(ROWS, json=document))
    assert found[0] == status
    assert message in found[2]
    assert client.get(ROWS).json()["count"] == 0


def test_wrong_bytes_types_tables_and_sizes_are_told(client) -> None:
    binary = np.int64(1).tobytes() + np.int64(5).tobytes() + np.zeros(39, "<f4").tobytes()
    assert "40 entries" in error_of(client.put(ROWS, content=binary, headers=BINARY))[2]
    for start in (b"", b"\xff" * 8, np.int64(2**60).tobytes()):
        assert error_of(client.put(ROWS, content=start, headers=BINARY))[0] == 400
    assert error_of(client.put(ROWS, content=b"x", headers={"content-type": "text/plain"}))[0] == 415
    assert error_of(client.put("/v1/tables/nobody/rows", json={}))[1] == "table_not_found"
    assert error_of(client.put(ROWS, content=b" " * 30_000, headers={"content-type": "application/json"}))[0] == 413
    many = {"ids": list(range(501)), "embeddings": []}
    assert error_of(client.put(ROWS, json=many))[1] == "too_many_ids"
    assert error_of(client.request("DELETE", ROWS, json={}))[0] == 422
    assert error_of(client.request("DELETE", ROWS, json={"all": True, "ids": [1]}))[0] == 422
    assert error_of(client.request("DELETE", ROWS, json={"all": False}))[0] == 422


def test_the_padding_row_stays_zero(client) -> None:
    goods = "/v1/tables/goods/rows"
    assert "padding" in error_of(client.put(goods, json={"ids": [7], "embeddings": ONE}))[2]
    client.put(goods, json={"ids": [8], "embeddings": [[2.0] * 40]})
    assert (rows_of(client, [7, 8], "goods")[:, 0] == [0, 2]).all()


def test_readiness_and_tables_tell_where_rows_are_kept(client) -> None:
    told = {"store": "process", "shared": True, "stale": False}
    assert client.get("/readyz").json() == {"status": "ok", "overlay": told}
    assert client.get("/v1/tables").json()["overlay"] == told


def test_with_several_workers_and_no_redis_writes_are_refused(snapshot_path) -> None:
    import httpx2 as httpx

    with serving(str(snapshot_path), "--workers", "2") as (url, _):
        answer = httpx.put(f"{url}{ROWS}", json={"ids": [1], "embeddings": ONE})
        assert error_of(answer)[:2] == (424, "redis_needed")
        assert "--redis-url" in error_of(answer)[2]
        assert httpx.get(f"{url}/readyz").json()["overlay"]["shared"] is False


def test_mutated_bodies_are_refused_or_taken_whole_and_never_break_it(client) -> None:
    generator = np.random.default_rng(5)
    rows = np.ones((2, 40), "<f4")
    document = {"ids": np.array([1, 2], "<i8").tobytes(), "embeddings": rows.tobytes()}
    whole = {
        "application/octet-stream": np.array([2, 1, 2], "<i8").tobytes() + rows.tobytes(),
        "application/msgpack": msgpack.packb(document),
        "application/json": json.dumps({"ids": [1, 2], "embeddings": rows.tolist()}).encode(),
    }
    seen = set()
    for number in range(240):
        media = list(whole)[number % 3]
        body = bytearray(whole[media])
        for _ in range(generator.integers(1, 4)):
            body[generator.integers(min(len(body), 60))] = generator.integers(256)
        cut = len(body) if number % 2 else int(generator.integers(len(body)))
        answer = client.put(ROWS, content=bytes(body[:cut]), headers={"content-type": media})
        assert answer.status_code in (200, 400, 413, 422), answer.text
        seen.add(answer.status_code)
        count = client.get(ROWS).json()["count"]
        assert count == (answer.json()["rows"] if answer.status_code == 200 else 0)
        client.request("DELETE", ROWS, json={"all": True})
    assert seen >= {200, 400, 422}
