"""The lookup routes: every media type, every refusal."""

import struct

import msgpack
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

import hfh_embed
from tests.builders import N

BINARY, JSON, MSGPACK = "application/octet-stream", "application/json", "application/msgpack"
LOOKUP, BAG = "/v1/tables/users/lookup", "/v1/tables/users/bag"


@pytest.fixture(scope="module")
def users(snapshot_path):
    return hfh_embed.open(snapshot_path)["users"]


@pytest.fixture(scope="module")
def version(snapshot_path) -> str:
    return hfh_embed.open(snapshot_path).version


def _binary(client: TestClient, ids, path: str = LOOKUP, **headers: str):
    return client.post(path, content=np.asarray(ids, "<i8").tobytes(), headers={"content-type": BINARY} | headers)


def _rows(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    dtype = {"float32": "<f4", "float16": "<f2"}[answer.headers["x-hfh-dtype"]]
    shape = tuple(map(int, answer.headers["x-hfh-shape"].split(",")))
    return np.frombuffer(answer.content, dtype).reshape(shape)


def _error(answer, status: int, type_: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == JSON
    error = answer.json()["error"]
    assert (error["status"], error["type"]) == (status, type_)
    assert "Traceback" not in answer.text
    return error["message"]


def test_json_lookup(client, users, version) -> None:
    answer = client.post(LOOKUP, json={"ids": [1, 2, N - 1]})
    assert answer.headers["x-hfh-version"] == version
    document = answer.json()
    assert (document["table"], document["version"]) == ("users", version)
    assert np.array_equal(np.array(document["embeddings"], dtype=np.float32), users.lookup([1, 2, N - 1]))


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 500])  # from 51 on in a thread
def test_binary_lookup(client, users, version, count: int) -> None:
    ids = np.arange(count)
    answer = _binary(client, ids)
    assert answer.headers["x-hfh-version"] == version
    assert _rows(answer).shape == (count, 40)
    assert _rows(answer).tobytes() == users.lookup(ids).tobytes()


def test_binary_lookup_in_float16(client, users) -> None:
    answer = _binary(client, [3, 4], accept=f"{BINARY};dtype=float16")
    assert answer.headers["x-hfh-dtype"] == "float16"
    assert _rows(answer).tobytes() == users.lookup([3, 4], dtype=np.float16).tobytes()


def test_msgpack_lookup(client, users, version) -> None:
    for ids in ([5, 6], np.array([5, 6], "<i8").tobytes()):
        answer = client.post(LOOKUP, content=msgpack.packb({"ids": ids}), headers={"content-type": MSGPACK})
        document = msgpack.unpackb(answer.content)
        found = document["embeddings"]
        assert (document["version"], found["shape"], found["dtype"]) == (version, [2, 40], "float32")
        assert found["data"] == users.lookup([5, 6]).tobytes()


def test_the_answers_type_can_differ_from_the_requests(client, users) -> None:
    answer = client.post(LOOKUP, json={"ids": [1]}, headers={"accept": BINARY})
    assert _rows(answer).tobytes() == users.lookup([1]).tobytes()
    answer = _binary(client, [1], accept=f"text/html, {JSON};q=0.9")
    assert np.array_equal(np.float32(answer.json()["embeddings"]), users.lookup([1]))
    half = client.post(LOOKUP, json={"ids": [1]}, headers={"accept": f"{JSON};dtype=float16"})
    assert np.array_equal(np.float16(half.json()["embeddings"]), users.lookup([1], dtype=np.float16))


def test_lookup_by_keys(client, users) -> None:
    answer = client.post(LOOKUP, json={"keys": ["key 7", "key 0"]})
    assert np.array_equal(np.float32(answer.json()["embeddings"]), users.lookup([7, 0]))
    message = _error(client.post(LOOKUP, json={"keys": ["nobody"]}), 422, "invalid_value")
    assert "'nobody'" in message
    hashed = client.post("/v1/tables/goods/lookup", json={"keys": ["anything"]})
    assert hashed.status_code == 200


def test_bags(client, users) -> None:
    ids, offsets, weights = [1, 2, 3], [0, 2], [0.5, 2.0, -1.0]
    for mode in ("sum", "mean", "max"):
        answer = client.post(BAG, json={"ids": ids, "offsets": offsets, "mode": mode})
        assert np.array_equal(np.float32(answer.json()["embeddings"]), users.bag(ids, offsets, mode=mode))
        binary = _binary(client, [len(offsets), *offsets, *ids], f"{BAG}?mode={mode}")
        assert np.array_equal(_rows(binary), users.bag(ids, offsets, mode=mode))
    expected = users.bag(ids, offsets, mode="sum", per_sample_weights=weights)
    for sent in (weights, np.float32(weights).tobytes()):
        body = msgpack.packb({"ids": ids, "offsets": offsets, "mode": "sum", "per_sample_weights": sent})
        answer = client.post(BAG, content=body, headers={"content-type": MSGPACK, "accept": BINARY})
        assert np.array_equal(_rows(answer), expected)
    last = client.post(BAG, json={"ids": ids, "offsets": [0, 2, 3], "include_last_offset": True})
    assert len(last.json()["embeddings"]) == 2


def test_several_tables_in_one_request(client, snapshot_path, version) -> None:
    asked = {"users": {"ids": [1, 2]}, "goods": {"ids": [1, 7, 3], "offsets": [0, 2], "mode": "sum"}}
    snapshot = hfh_embed.open(snapshot_path)
    answer = client.post("/v1/lookup", json={"tables": asked}).json()["tables"]
    assert np.array_equal(np.float32(answer["users"]["embeddings"]), snapshot["users"].lookup([1, 2]))
    bags = snapshot["goods"].bag([1, 7, 3], [0, 2], mode="sum")
    assert np.array_equal(np.float32(answer["goods"]["embeddings"]), bags)
    assert {found["version"] for found in answer.values()} == {version}


def test_unknown_ids_follow_the_policy(client) -> None:
    message = _error(client.post(LOOKUP, json={"ids": [1, N]}), 422, "invalid_value")
    assert str(N) in message
    assert not np.array(client.post("/v1/tables/goods/lookup", json={"ids": [N]}).json()["embeddings"]).any()
    _error(client.post("/v1/tables/goods/lookup", json={"ids": [-1]}), 422, "invalid_value")


@pytest.mark.parametrize(
    ("body", "status", "type_"),
    [
        (b"", 400, "malformed_request"),
        (b"{", 400, "malformed_request"),
        (b"[1, 2]", 400, "malformed_request"),
        (b'{"ids": [1}', 400, "malformed_request"),
        (b'{"ids": [NaN]}', 400, "malformed_request"),
        (b'{"ids": "\xff"}', 400, "malformed_request"),
        (b"[" * 5_000, 400, "malformed_request"),
        (b"{}", 422, "invalid_value"),
        (b'{"ids": null}', 422, "invalid_value"),
        (b'{"ids": 5}', 422, "invalid_value"),
        (b'{"ids": [1.0]}', 422, "invalid_value"),
        (b'{"ids": [true]}', 422, "invalid_value"),
        (b'{"ids": ["1"]}', 422, "invalid_value"),
        (b'{"ids": [[1]]}', 422, "invalid_value"),
        (b'{"ids": [9223372036854775808]}', 422, "invalid_value"),
        (b'{"ids": [1e400]}', 400, "malformed_request"),
        (b'{"ids": [99999999999999999999999]}', 422, "invalid_value"),
        (b'{"ids": [1], "keys": ["a"]}', 422, "invalid_value"),
        (b'{"keys": [1]}', 422, "invalid_value"),
        (b'{"keys": "abc"}', 422, "invalid_value"),
        (b'{"ids": [1], "surprise": 1}', 422, "invalid_value"),
        (b'{"ids": [' + b",".join([b"1"] * 501) + b"]}", 413, "too_many_ids"),
        (b'{"ids": [' + b",".join([b"1"] * 15_000) + b"]}", 413, "body_too_large"),
    ],
)
def test_wrong_json_is_refused(client, body: bytes, status: int, type_: str) -> None:
    _error(client.post(LOOKUP, content=body, headers={"content-type": JSON}), status, type_)


@pytest.mark.parametrize(
    "change",
    [
        {"offsets": [1]},
        {"offsets": [0, 5]},
        {"offsets": [0, 2, 1]},
        {"offsets": None},
        {"offsets": [0.5]},
        {"mode": "median"},
        {"mode": ["sum"]},
        {"include_last_offset": 1},
        {"per_sample_weights": [1.0]},
        {"per_sample_weights": [1, 2, "x"], "mode": "sum"},
        {"per_sample_weights": [1, 2, 3]},
    ],
)
def test_wrong_bags_are_refused(client, change) -> None:
    answer = client.post(BAG, json={"ids": [1, 2, 3], "offsets": [0, 2]} | change)
    _error(answer, 422, "invalid_value")


@pytest.mark.parametrize("values", [[], [5], [-1, 2], [2**62, 1]])
def test_wrong_binary_bags_are_refused(client, values) -> None:
    _error(_binary(client, values, BAG), 400, "malformed_request")
    _error(_binary(client, [1, 0, 5], f"{BAG}?mode=median"), 422, "invalid_value")
    _error(_binary(client, [1, 0, 5], f"{BAG}?color=red"), 422, "invalid_value")


def test_half_an_id_is_refused(client) -> None:
    answer = client.post(LOOKUP, content=b"1234567890", headers={"content-type": BINARY})
    assert "multiple of 8" in _error(answer, 400, "malformed_request")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"tables": {}},
        {"tables": []},
        {"tables": {"users": [1]}},
        {"tables": {"users": {}}},
        {"tables": {"users": {"ids": 1}}},
    ],
)
def test_wrong_questions_to_several_tables_are_refused(client, document) -> None:
    _error(client.post("/v1/lookup", json=document), 422, "invalid_value")


def test_other_refusals(client) -> None:
    _error(client.post("/v1/tables/nobody/lookup", json={"ids": [1]}), 404, "table_not_found")
    _error(client.post("/v1/lookup", json={"tables": {"nobody": {"ids": [1]}}}), 404, "table_not_found")
    _error(client.post(LOOKUP, content=b"x", headers={"content-type": "text/csv"}), 415, "unsupported_media_type")
    _error(
        client.post("/v1/lookup", content=b"12345678", headers={"content-type": BINARY}), 415, "unsupported_media_type"
    )
    _error(client.post(LOOKUP, json={"ids": [1]}, headers={"accept": "image/png"}), 406, "not_acceptable")
    _error(client.post(LOOKUP, json={"ids": [1]}, headers={"accept": f"{BINARY};dtype=int8"}), 406, "not_acceptable")
    _error(client.get(LOOKUP), 405, "method_not_allowed")
    _error(client.put("/v1/lookup"), 405, "method_not_allowed")
    _error(client.get("/nothing"), 404, "not_found")
    _error(client.delete("/v1/tables"), 405, "method_not_allowed")
    _error(client.post("/v1/tables/../../etc/passwd/lookup", json={"ids": [1]}), 404, "not_found")
    _error(client.post("/v1/tables/%2e%2e%2fusers/lookup", json={"ids": [1]}), 404, "table_not_found")
    limit = client.post("/v1/lookup", json={"tables": {"users": {"ids": [1] * 300}, "goods": {"ids": [1] * 201}}})
    _error(limit, 413, "too_many_ids")


@given(st.binary(max_size=200), st.sampled_from([JSON, MSGPACK, BINARY]), st.sampled_from([LOOKUP, BAG, "/v1/lookup"]))
def test_any_bytes_get_an_answer_in_the_one_shape(client, body: bytes, media: str, path: str) -> None:
    answer = client.post(path, content=body, headers={"content-type": media})
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500, answer.text
        assert set(orjson.loads(answer.content)["error"]) == {"type", "message", "status"}


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**64) | st.floats() | st.text(max_size=3) | st.binary(max_size=16),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.fixed_dictionaries({"ids": _values}, optional={"offsets": _values, "mode": _values, "keys": _values}),
    st.sampled_from([LOOKUP, BAG]),
)
def test_any_values_get_an_answer_in_the_one_shape(client, document, path: str) -> None:
    try:
        body = msgpack.packb(document)
    except (OverflowError, ValueError):
        return
    answer = client.post(path, content=body, headers={"content-type": MSGPACK, "accept": JSON})
    assert answer.status_code in (200, 400, 404, 413, 422), answer.text


def test_over_capacity_gets_429_and_when_to_come_back(snapshot_path) -> None:
    from service.app import create_app
    from service.settings import Settings
    from service.state import State

    state = State.load(Settings(paths=(snapshot_path,), max_in_flight_ids=10))
    with TestClient(create_app(state)) as client, state.in_flight.take(8):
        answer = client.post(LOOKUP, json={"ids": [1, 2, 3]})
        _error(answer, 429, "over_capacity")
        assert answer.headers["retry-after"] == "1"
        assert client.post(LOOKUP, json={"ids": [1, 2]}).status_code == 200
    assert state.in_flight.now == 0


def test_an_unforeseen_failure_is_500_without_a_traceback(client, monkeypatch, caplog) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(hfh_embed.Table, "lookup", broken)
    message = _error(client.post(LOOKUP, json={"ids": [1]}), 500, "internal")
    assert "secret" not in message
    assert "secret detail" in caplog.text


def test_ids_may_be_as_large_as_int64(client) -> None:
    body = struct.pack("<q", 2**63 - 1)
    answer = client.post("/v1/tables/goods/lookup", content=body, headers={"content-type": BINARY})
    assert not _rows(answer).any()
