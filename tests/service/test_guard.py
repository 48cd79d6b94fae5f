import asyncio
import json
import logging
import time

import numpy as np
import pytest
from starlette.testclient import TestClient

import hfh_embed
from service.app import create_app
from service.calls import CALL
from service.errors import ApiError, error_body_for
from service.guard import Guard
from service.settings import Settings
from service.state import State

LOOKUP = "/v1/tables/users/lookup"


def _state(snapshot_path, **settings) -> State:
    return State.load(Settings(paths=(snapshot_path,), **settings))


def test_a_sane_request_id_is_echoed_and_others_are_made(client) -> None:
    assert client.get("/livez", headers={"x-request-id": "my-id.1:2_3"}).headers["x-request-id"] == "my-id.1:2_3"
    made = {client.post(LOOKUP, json={"ids": [1]}).headers["x-request-id"] for _ in range(100)}
    for insane in ("", "x" * 65, "a b", 'a"b', "ä".encode("latin-1")):
        made.add(client.get("/nowhere", headers={"x-request-id": insane}).headers["x-request-id"])
    assert len(made) == 105
    assert all(len(request) <= 30 and request.isascii() for request in made)


def test_the_error_shape_follows_the_path() -> None:
    assert json.loads(error_body_for("/v2/models/x", 404, "not_found", "gone")) == {"error": "gone"}
    assert json.loads(error_body_for("/v2", 404, "not_found", "\ud800")) == {"error": "?"}
    for path in ("/v1/tables", "/v20", "/", ""):
        expected = {"error": {"type": "not_found", "message": "gone", "status": 404}}
        assert json.loads(error_body_for(path, 404, "not_found", "gone")) == expected


def test_a_route_that_is_not_there_answers_in_the_shape_of_its_path(client) -> None:
    assert client.get("/v1/nothing").json()["error"]["type"] == "not_found"
    assert "nothing is at /v2/nothing" in client.get("/v2/nothing").json()["error"]


@pytest.mark.parametrize("timeout", ["0", "-1", "1.5", "soon", "3600001", "9" * 30, ""])
def test_an_unusable_deadline_is_refused(client, timeout: str) -> None:
    answer = client.post(LOOKUP, json={"ids": [1]}, headers={"x-hfh-timeout-ms": timeout})
    assert answer.status_code == 400
    assert "X-HFH-Timeout-Ms" in answer.json()["error"]["message"]


def test_a_generous_deadline_changes_nothing(client, snapshot_path) -> None:
    answer = client.post(LOOKUP, json={"ids": [1]}, headers={"x-hfh-timeout-ms": "60000"})
    expected = hfh_embed.open(snapshot_path)["users"].lookup([1])
    assert np.array_equal(np.float32(answer.json()["embeddings"]), expected)


def _slow_lookups(state: State, monkeypatch, seconds: float) -> list[int]:
    """Make every computation of rows take this long; the list counts those that began."""
    began: list[int] = []
    kind = type(state.catalog["users"])
    real = kind.lookup

    def slow(self, ids, dtype):
        began.append(len(ids))
        time.sleep(seconds)
        return real(self, ids, dtype)

    monkeypatch.setattr(kind, "lookup", slow)
    return began


@pytest.mark.parametrize("by_header", [True, False])
def test_past_its_deadline_a_request_gets_504(snapshot_path, monkeypatch, by_header: bool) -> None:
    settings = {} if by_header else {"deadline_ms": 100}
    state = _state(snapshot_path, thread_ids=1, **settings)
    _slow_lookups(state, monkeypatch, 3)
    with TestClient(create_app(state)) as client:
        # A header cannot ask for more than the setting allows.
        headers = {"x-hfh-timeout-ms": "100" if by_header else "50000"}
        began = time.monotonic()
        answer = client.post(LOOKUP, json={"ids": [1, 2]}, headers=headers)
        assert time.monotonic() - began < 2.5
        assert (answer.status_code, answer.json()["error"]["type"]) == (504, "deadline_exceeded")
        text = client.get("/metrics").text
    assert 'hfh_rejected_total{reason="deadline_exceeded"} 1.0' in text
    assert 'hfh_requests_total{route="lookup",status="504"} 1.0' in text


def test_what_waits_past_its_deadline_is_not_computed(snapshot_path, monkeypatch) -> None:
    state = _state(snapshot_path, thread_ids=1)
    began = _slow_lookups(state, monkeypatch, 1)
    app = create_app(state)

    async def ask(headers: list[tuple[bytes, bytes]], connection=None) -> int:
        statuses = []

        async def send(message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        class Server:
            disconnected = False

            async def receive(self):
                return {"type": "http.request", "body": b'{"ids": [1, 2]}'}

        server = connection or Server()
        scope = {"type": "http", "method": "POST", "path": LOOKUP, "query_string": b"", "client": None}
        await app(scope | {"headers": [(b"content-type", b"application/json"), *headers]}, server.receive, send)
        return statuses[0]

    async def gone() -> int:
        class Gone:
            disconnected = False

            async def receive(self):
                return {"type": "http.request", "body": b'{"ids": [1, 2]}'}

        connection = Gone()
        asyncio.get_running_loop().call_later(0.1, setattr, connection, "disconnected", True)
        return await ask([], connection)

    async def all_of_them() -> list[int]:
        from concurrent.futures import ThreadPoolExecutor

        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        first = asyncio.ensure_future(ask([]))
        await asyncio.sleep(0.05)
        rest = [ask([(b"x-hfh-timeout-ms", b"100")]), gone()]
        return await asyncio.gather(first, *rest)

    assert asyncio.run(all_of_them()) == [200, 504, 499]
    assert len(began) == 1, "only the one in time was computed"


def test_the_call_ends_with_its_request(client) -> None:
    client.get("/livez")
    assert CALL.get() is None


def test_while_draining_every_answer_says_it_is_the_last(snapshot_path) -> None:
    state = _state(snapshot_path)
    with TestClient(create_app(state)) as client:
        assert "connection" not in client.post(LOOKUP, json={"ids": [1]}).headers
        state.ready = False
        answer = client.post(LOOKUP, json={"ids": [1]})
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")


def test_the_access_log_is_off_unless_asked_for(snapshot_path, caplog) -> None:
    for wanted in (False, True):
        caplog.clear()
        with TestClient(create_app(_state(snapshot_path, access_log=wanted))) as client, caplog.at_level(logging.INFO):
            client.post(LOOKUP, json={"ids": [1]})
        lines = [record for record in caplog.records if record.name == "hfh.access"]
        assert len(lines) == wanted
    fields = lines[0].fields  # type: ignore[attr-defined]
    assert (fields["method"], fields["path"], fields["status"]) == ("POST", LOOKUP, 200)


def test_an_error_after_the_answer_began_is_not_answered_twice(snapshot_path) -> None:
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ApiError(500, "internal", "late")

    sent = []

    async def send(message) -> None:
        sent.append(message["type"])

    scope = {"type": "http", "method": "GET", "path": "/v1/x", "headers": [], "client": None}
    with pytest.raises(ApiError):
        asyncio.run(Guard(app, _state(snapshot_path))(scope, None, send))
    assert sent == ["http.response.start"]
