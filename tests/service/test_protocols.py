"""Every way to ask for rows serves the same ones: of the active version or a pinned one, with fresh rows laid over."""

import asyncio
import base64

import numpy as np
import pytest

import hfh_embed
import service.reconstructor
from service.app import create_app
from service.fast_lane import Lane
from service.settings import Settings
from service.state import State
from tests.service.test_snapshots import service as serving_here
from tests.service.test_snapshots import write

TABLE = "/v1/tables/users"
BINARY = "application/octet-stream"
IDS = [3, 5, 8]


def _json(client, headers):
    answer = client.post(f"{TABLE}/lookup", json={"ids": IDS}, headers=headers)
    return answer, answer.json().get("embeddings")


def _binary(client, headers):
    body = np.array(IDS, "<i8").tobytes()
    answer = client.post(f"{TABLE}/lookup", content=body, headers=headers | {"content-type": BINARY})
    return answer, answer.status_code == 200 and np.frombuffer(answer.content, "<f4").reshape(len(IDS), -1)


def _bag(client, headers):
    answer = client.post(f"{TABLE}/bag", json={"ids": IDS, "offsets": [0, 1, 2]}, headers=headers)
    return answer, answer.json().get("embeddings")


def _several(client, headers):
    answer = client.post("/v1/lookup", json={"tables": {"users": {"ids": IDS}}}, headers=headers)
    return answer, answer.json().get("tables", {}).get("users", {}).get("embeddings")


def _row(client, headers):
    answers = [client.get(f"{TABLE}/rows/{id_}", headers=headers) for id_ in IDS]
    return answers[0], [answer.json().get("embedding") for answer in answers]


def _infer(client, headers):
    inputs = [{"name": "ids", "shape": [len(IDS)], "datatype": "INT64", "data": IDS}]
    answer = client.post("/v2/models/users/infer", json={"inputs": inputs}, headers=headers)
    return answer, answer.status_code == 200 and np.array(answer.json()["outputs"][0]["data"]).reshape(len(IDS), -1)


def _openai(client, headers):
    asked = {"model": "users", "input": IDS, "encoding_format": "base64"}
    answer = client.post("/v1/embeddings", json=asked, headers=headers)
    found = answer.json().get("data", [])
    return answer, [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in found]


WAYS = {
    "json": _json,
    "binary": _binary,
    "bag": _bag,
    "several": _several,
    "row": _row,
    "infer": _infer,
    "openai": _openai,
}


@pytest.fixture(scope="module", params=[0, 1_000_000], ids=["no cache", "cache"])
def two(tmp_path_factory, request):
    """A service with an old and a new version of one table, the new one active."""
    folder = tmp_path_factory.mktemp("two")
    versions = [write(folder / "old.hfh", 1, age_s=100), write(folder / "new.hfh", 2)]
    tables = [hfh_embed.open(folder / name)["users"] for name in ("old.hfh", "new.hfh")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.reconstructor, "DEAR_ROWS_S", 0.0)  # a cache for any table
        with serving_here(folder, cache_bytes=request.param, batching="on") as client:
            yield client, versions, tables
            counted = "hfh_cache_rows_total{" in client.get("/metrics").text
    assert counted is bool(request.param)


@pytest.mark.parametrize("way", WAYS)
def test_activations_pins_and_fresh_rows_hold_for(way: str, two) -> None:
    client, (old, new), tables = two
    fresh = np.arange(tables[0].embedding_dim, dtype=np.float32)

    def served(headers=None):
        answer, rows = WAYS[way](client, headers or {})
        assert answer.status_code == 200, answer.text
        return answer, np.array(rows, dtype=np.float32)

    for version, table in ((old, tables[0]), (new, tables[1]), (old, tables[0]), (new, tables[1])):
        assert client.post(f"/v1/snapshots/{version}/activate").status_code == 200
        for _ in range(2):
            answer, rows = served()
            np.testing.assert_allclose(rows, table.lookup(IDS), rtol=1e-6, atol=1e-7)
            assert version in answer.headers.get("x-hfh-version", answer.text)
        _, rows = served({"x-hfh-version": old})
        np.testing.assert_allclose(rows, tables[0].lookup(IDS), rtol=1e-6, atol=1e-7)
        assert client.put(f"{TABLE}/rows", json={"ids": [IDS[1]], "embeddings": [fresh.tolist()]}).status_code == 200
        for headers in ({}, {"x-hfh-version": old}):
            _, rows = served(headers)
            np.testing.assert_array_equal(rows[1], fresh)
        assert client.request("DELETE", f"{TABLE}/rows", json={"all": True}).status_code == 200
    answer, _ = WAYS[way](client, {"x-hfh-version": "0" * 12})
    assert answer.status_code == 404


def test_a_search_finds_fresh_rows_and_what_they_replaced_no_more(two) -> None:
    client, _, _ = two
    dim = client.get(TABLE).json()["embedding_dim"]
    far = (1_000 * np.ones(dim)).tolist()
    asked = {"vectors": [far], "k": 1, "metric": "l2"}
    before = client.post(f"{TABLE}/search", json=asked).json()["ids"]
    assert before != [[77]]
    client.put(f"{TABLE}/rows", json={"ids": [77], "embeddings": [far]})
    assert client.post(f"{TABLE}/search", json=asked).json()["ids"] == [[77]]
    client.request("DELETE", f"{TABLE}/rows", json={"all": True})
    assert client.post(f"{TABLE}/search", json=asked).json()["ids"] == before


def test_a_version_in_the_path_of_a_model_may_be_one_that_is_not_active(two) -> None:
    client, (old, new), tables = two
    client.post(f"/v1/snapshots/{new}/activate")
    inputs = {"inputs": [{"name": "ids", "shape": [3], "datatype": "INT64", "data": IDS}]}
    answer = client.post(f"/v2/models/users/versions/{old}/infer", json=inputs).json()
    assert answer["model_version"] == old
    rows = np.array(answer["outputs"][0]["data"], dtype=np.float32).reshape(3, -1)
    np.testing.assert_allclose(rows, tables[0].lookup(IDS), rtol=1e-6)


def _request(path: str) -> bytes:
    body = np.array(IDS, "<i8").tobytes()
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {BINARY}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
    )


def _lane_rows(lane: Lane, path: str = f"{TABLE}/lookup") -> np.ndarray | None:
    answers: list[tuple[bytes, bytes | memoryview]] = []
    if not lane.take(_request(path), answers.append):
        return None
    lane.flush()
    [(top, content)] = answers
    assert top.startswith(b"HTTP/1.1 200")
    return np.frombuffer(content, "<f4").reshape(len(IDS), -1)


@pytest.mark.parametrize("batching", ["off", "on"])
def test_the_lane_follows_activations_and_fresh_rows(tmp_path, batching: str) -> None:
    old, new = write(tmp_path / "old.hfh", 1, age_s=100), write(tmp_path / "new.hfh", 2)
    state = State.load(Settings(paths=(tmp_path,), batching=batching))
    lane = create_app(state).lane
    assert lane is not None

    async def run() -> None:
        for version, name in ((old, "old.hfh"), (new, "new.hfh")):
            await state.snapshots.activate(version)
            expected = hfh_embed.open(tmp_path / name)["users"].lookup(IDS)
            assert np.array_equal(_lane_rows(lane), expected)
            await state.overlay.put("users", np.array([5]), np.ones((1, expected.shape[1]), np.float32))
            assert np.array_equal(_lane_rows(lane), np.stack([expected[0], np.ones_like(expected[1]), expected[2]]))
            await state.overlay.drop("users")

    asyncio.run(run())
    assert _lane_rows(lane, f"{TABLE}/lookup?version={old}") is None, "a pin needs the long way"
    state.overlay.stale = True
    assert _lane_rows(lane) is None, "so does the mark of stale rows"
