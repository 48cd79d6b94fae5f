import json
import logging
import re

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.auth import new_key
from service.calls import CALL, Call
from service.client import Client, ServiceError
from service.logs import JsonFormatter, configure
from service.settings import Settings
from service.state import State
from tests.service.conftest import serving


def _line(record: logging.LogRecord) -> dict:
    line = JsonFormatter().format(record)
    assert "\n" not in line
    return json.loads(line)


def _record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("hfh.service", logging.WARNING, __file__, 1, message, arguments, None)
    record.__dict__ |= extra
    return record


def test_a_record_becomes_one_json_object() -> None:
    line = _line(_record("%d of\n%s", 5, "ä"))
    assert (line["level"], line["logger"], line["message"]) == ("warning", "hfh.service", "5 of\nä")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert "request" not in line


def test_the_requests_id_is_in_it() -> None:
    call = Call(None)
    call.id = b"abc-1"
    token = CALL.set(call)
    assert _line(_record("x", fields={"status": 200}))["request"] == "abc-1"
    assert _line(_record("x", fields={"status": 200}))["status"] == 200
    CALL.reset(token)


def test_what_json_lacks_is_shown_as_text() -> None:
    assert _line(_record("x", fields={"what": {1, 2}}))["what"] == "{1, 2}"


def test_an_error_is_logged_with_its_request_and_the_client_learns_no_more(snapshot_path, monkeypatch, capsys) -> None:
    state = State.load(Settings(paths=(snapshot_path,)))

    def fail(*_: object) -> None:
        raise RuntimeError("a secret of the house")

    monkeypatch.setattr(type(state.catalog["users"]), "lookup", fail)
    saved, level = logging.getLogger().handlers[:], logging.getLogger().level
    configure("warning", access_log=False)
    try:
        with TestClient(create_app(state), raise_server_exceptions=False) as client:
            answer = client.post("/v1/tables/users/lookup", json={"ids": [1]}, headers={"x-request-id": "mine"})
    finally:
        logging.getLogger().handlers[:] = saved
        logging.getLogger().setLevel(level)
        logging.raiseExceptions = True
    assert answer.status_code == 500
    assert "secret" not in answer.text
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (error,) = [line for line in lines if line["level"] == "error"]
    assert error["request"] == "mine"
    assert "RuntimeError: a secret of the house" in error["error"]


@pytest.mark.parametrize("workers", [1, 2])
def test_neither_keys_nor_vectors_are_logged(snapshot_path, tmp_path, workers: int) -> None:
    import hfh_embed

    key, line = new_key("feed", "read")
    keys, log = tmp_path / "keys.yaml", tmp_path / "log"
    keys.write_text(f"keys:\n  - {line}\n")
    flags = ("--keys-file", str(keys), "--access-log", "true", "--log-level", "debug", "--workers", str(workers))
    with serving(str(snapshot_path), *flags, stderr=str(log)) as (url, _):
        with Client(url, api_key=key) as client:
            client.lookup("users", [123])
            with pytest.raises(ServiceError, match="has scope read; this needs write"):
                client._send(_put())
        with Client(url, api_key="hfh_wrong") as client, pytest.raises(ServiceError, match="is not known"):
            client.lookup("users", [123])
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    requests = [line for line in lines if line["logger"] == "hfh.access"]
    assert {(line["status"], line["key"]) for line in requests} == {(200, "feed"), (403, None), (401, None)}
    assert all(line["ms"] >= 0 and line["request"] for line in requests)
    assert key not in text
    assert "hfh_wrong" not in text
    for value in hfh_embed.open(snapshot_path)["users"].lookup([123])[0][:5]:
        assert f"{value:.4f}" not in text


def _put():
    from service.client import _Call

    return _Call("/v1/tables/users/rows", b"{}", "application/json", None, "PUT")
