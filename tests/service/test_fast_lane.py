"""The lane answers as the long way does, takes only what it may, and keeps HTTP's order."""

import asyncio
import signal
import socket
import time

import msgpack
import numpy as np
import orjson
import pytest

import hfh_embed
from service.app import create_app
from service.auth import new_key
from service.fast_lane import MOST_BODY_BYTES, MOST_HEADS, Lane, find_route
from service.settings import Settings
from service.state import State
from tests.builders import N
from tests.service.conftest import LIMITS, serving

BINARY, JSON, MSGPACK = "application/octet-stream", "application/json", "application/msgpack"
LOOKUP, BAG = "/v1/tables/users/lookup", "/v1/tables/users/bag"
IDS = np.array([3, 1, 2], "<i8")


@pytest.fixture(params=["off", "on"])
def lane(snapshot_path, request) -> Lane:
    return create_app(State.load(Settings(paths=(snapshot_path,), batching=request.param, **LIMITS))).lane


def _ask(lane: Lane, data: bytes):
    async def ask():
        answers = []
        taken = lane.take(data, answers.append)
        await asyncio.sleep(0.01)
        assert len(answers) == taken
        return answers[0] if taken else None

    return asyncio.run(ask())  # in an event loop, as in a server


def _request(path: str, body: bytes, *headers: str, start: str = "POST {path} HTTP/1.1") -> bytes:
    lines = [start.format(path=path), "host: here", *headers]
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _parts(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in headers), body


SAME = [
    (LOOKUP, IDS.tobytes(), (f"content-type: {BINARY}",)),
    (LOOKUP, IDS.tobytes(), (f"content-type: {BINARY}", f"accept: {BINARY};dtype=float16", "connection: keep-alive")),
    (LOOKUP, IDS.tobytes(), (f"content-type: {BINARY}", f"accept: {JSON}")),
    (LOOKUP, b'{"ids": [3, 1, 2]}', (f"content-type: {JSON}", "accept: */*", "user-agent: x")),
    (LOOKUP, b'{"keys": ["key 3"]}', (f"content-type: {JSON}; charset=utf-8", f"accept: {BINARY}")),
    (LOOKUP, msgpack.packb({"ids": [3, 1]}), (f"content-type: {MSGPACK}",)),
    (BAG, np.array([2, 0, 1, 3, 1, 2], "<i8").tobytes(), (f"content-type: {BINARY}",)),
    (BAG + "?mode=max", np.array([2, 0, 1, 3, 1, 2], "<i8").tobytes(), (f"content-type: {BINARY}",)),
    (BAG, b'{"ids": [1, 2], "offsets": [0, 1], "mode": "sum"}', (f"content-type: {JSON}",)),
    # refused
    (LOOKUP, b"1234567", (f"content-type: {BINARY}",)),
    (LOOKUP, np.array([N], "<i8").tobytes(), (f"content-type: {BINARY}",)),
    (LOOKUP, np.array([-1], "<i8").tobytes(), (f"content-type: {BINARY}",)),
    (LOOKUP, np.zeros(501, "<i8").tobytes(), (f"content-type: {BINARY}",)),
    (LOOKUP, b'{"ids": [1', (f"content-type: {JSON}",)),
    (LOOKUP, b'{"keys": ["nobody"]}', (f"content-type: {JSON}",)),
    (BAG + "?colour=red", np.array([1, 0, 3], "<i8").tobytes(), (f"content-type: {BINARY}",)),
    (BAG, np.array([9, 0, 3], "<i8").tobytes(), (f"content-type: {BINARY}",)),
    ("/v1/tables/nobody/lookup", IDS.tobytes(), (f"content-type: {BINARY}",)),
]


@pytest.mark.parametrize("case", range(len(SAME)))
def test_the_lane_and_the_long_way_answer_the_same(lane, client, case: int) -> None:
    path, body, headers = SAME[case]
    for _ in range(2):  # the second time its head is remembered
        answer = _ask(lane, _request(path, body, *headers))
        assert answer is not None
        status, described, content = _parts(b"".join(answer))
        other = client.post(path, content=body, headers=dict(header.split(": ", 1) for header in headers))
        assert (status, content) == (other.status_code, other.content)
        expected = dict(other.headers)
        expected.pop("connection", None)  # the long way ends a connection whose body it may not have read
        assert described.pop("x-request-id") != expected.pop("x-request-id")
        assert described == expected


@pytest.mark.parametrize(
    "request_",
    {
        "another method": _request(LOOKUP, IDS.tobytes(), start="GET {path} HTTP/1.1"),
        "another route": _request("/v1/lookup", b"{}", f"content-type: {JSON}"),
        "another page": _request("/v1/tables", b""),
        "HTTP/1.0": _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}", start="POST {path} HTTP/1.0"),
        "an end": _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}", "connection: close"),
        "an unknown header": _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}", "x-other: 1"),
        "a key": _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}", "authorization: Bearer x"),
        "chunks": _request(LOOKUP, b"0\r\n\r\n", f"content-type: {BINARY}", "transfer-encoding: chunked"),
        "expectations": _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}", "expect: 100-continue"),
        "two lengths": _request(
            LOOKUP, IDS.tobytes(), f"content-type: {BINARY}", "content-length: 24", "content-length: 24"
        ),
        "a signed length": _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}", "content-length: +24"),
        "no length": _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}", "transfer-encoding: identity"),
        "an escaped path": _request("/v1/tables/us%65rs/lookup", IDS.tobytes(), f"content-type: {BINARY}"),
        "a full URL": _request("http://here" + LOOKUP, b"", f"content-type: {BINARY}", start="CONNECT {path} HTTP/1.1"),
        "another type": _request(LOOKUP, IDS.tobytes(), "content-type: text/plain"),
        "an answer of no type": _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}", "accept: text/html"),
        "half a head": _request(LOOKUP, b"", f"content-type: {BINARY}")[:-2],
        "half a body": _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}")[:-1],
        "more than a body": _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}") + b"P",
        "two requests": _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}") * 2,
        "a bare newline": _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}").replace(b"here\r\n", b"here\n\n"),
        "many ids": _request(LOOKUP, np.zeros(51, "<i8").tobytes(), f"content-type: {BINARY}"),
        "a large body": _request(LOOKUP, bytes(MOST_BODY_BYTES + 8), f"content-type: {BINARY}"),
        "more than is allowed": _request(LOOKUP, bytes(20_008), f"content-type: {BINARY}"),
        "a long head": _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}", "user-agent: " + "x" * 1_024),
        "no body": _request(LOOKUP, b"", f"content-type: {BINARY}"),
        "nonsense": b"\x00\xff\r\n\r\n",
        "nothing": b"",
    }.items(),
    ids=lambda item: item[0],
)
def test_everything_else_goes_the_long_way(lane, request_) -> None:
    for _ in range(2):
        assert _ask(lane, request_[1]) is None


def test_it_is_closed_once_the_process_is_asked_to_stop(lane) -> None:
    request = _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}")
    assert _ask(lane, request) is not None
    lane._path.state.ready = False
    assert _ask(lane, request) is None


@pytest.mark.parametrize(
    "setting", [{"deadline_ms": 50}, {"access_log": True}, {"otel_endpoint": "http://127.0.0.1:1"}], ids=str
)
def test_it_is_closed_where_every_request_needs_more(snapshot_path, setting) -> None:
    lane = create_app(State.load(Settings(paths=(snapshot_path,), **setting))).lane
    assert _ask(lane, _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}")) is None


def test_what_it_refuses_is_counted(lane) -> None:
    state = lane._path.state
    request = _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}")
    with state.in_flight.take(state.in_flight.most):
        assert _parts(b"".join(_ask(lane, request)))[0] == 429
    assert _parts(b"".join(_ask(lane, _request(LOOKUP, b"1", f"content-type: {BINARY}"))))[0] == 400
    refused = [line for line in state.metrics.render().decode().splitlines() if line.startswith("hfh_rejected_total{")]
    assert refused == ['hfh_rejected_total{reason="over_capacity"} 1.0']


def test_every_answer_has_a_request_id_of_its_own(lane) -> None:
    request = _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}")
    assert len({_parts(b"".join(_ask(lane, request)))[1]["x-request-id"] for _ in range(20)}) == 20


def test_it_remembers_a_bounded_number_of_heads(lane) -> None:
    for number in range(3 * MOST_HEADS):
        assert _ask(lane, _request(LOOKUP, b"1", "content-type: " + BINARY, f"user-agent: {number}")) is not None
    assert 0 < len(lane._plans) <= MOST_HEADS


def test_it_counts_like_the_long_way(lane) -> None:
    _ask(lane, _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}"))
    _ask(lane, _request(LOOKUP, b"1", f"content-type: {BINARY}"))
    text = lane._path.state.metrics.render().decode()
    assert 'hfh_requests_total{route="lookup",status="200"} 1.0' in text
    assert 'hfh_requests_total{route="lookup",status="400"} 1.0' in text
    assert 'hfh_ids_total{table="users"} 3.0' in text
    assert 'hfh_request_seconds_count{route="lookup"} 1.0' in text
    assert lane._path.state.in_flight.now == 0


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v1/lookup", ("tables", "")),
        (LOOKUP, ("lookup", "users")),
        ("/v1/tables/a/b/bag", ("bag", "a/b")),
        ("/v1/tables/users", None),
        ("/v1/tables/users/rows", None),
        ("/v1/tables/lookup", None),
        ("/", None),
    ],
)
def test_routes(path: str, found) -> None:
    assert find_route(path) == found


@pytest.fixture(scope="module", params=["off", "on"])
def port(snapshot_path, request):
    with serving(str(snapshot_path), "--keep-alive-s", "1", "--batching", request.param) as (url, _):
        yield int(url.rpartition(":")[2])


def test_keys_and_rates_hold_for_requests_that_look_plain(snapshot_path, tmp_path) -> None:
    key, line = new_key("feed", "read", "5/minute")
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys:\n  - {line}\n")
    plain = _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}")
    known = _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}", f"x-api-key: {key}")
    with serving(str(snapshot_path), "--keys-file", str(path)) as (url, _):
        address = "127.0.0.1", int(url.rpartition(":")[2])
        with socket.create_connection(address, timeout=10) as connection:
            statuses = []
            for request in (plain, known, plain, known, plain):
                connection.sendall(request)
                statuses.append(_read(connection, 1)[0][0])
            assert statuses == [401, 200, 401, 429, 401]


def test_the_last_answers_of_a_stop_say_goodbye(snapshot_path) -> None:
    plain = _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}")
    with serving(str(snapshot_path), "--drain-delay-s", "2") as (url, process):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
            connection.sendall(plain)
            [(status, headers, _)] = _read(connection, 1)
            assert status == 200
            assert "connection" not in headers
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            connection.sendall(plain)
            [(status, headers, _)] = _read(connection, 1)
            assert (status, headers["connection"]) == (200, "close")
        assert process.wait(timeout=10) == 0


def _read(connection: socket.socket, answers: int) -> list[tuple[int, dict[str, str], bytes]]:
    found, data = [], b""
    while len(found) < answers:
        data += (more := connection.recv(65536))
        assert more, "closed"
        while b"\r\n\r\n" in data:
            status, headers, body = _parts(data)
            length = int(headers["content-length"])
            if len(body) < length:
                break
            found.append((status, headers, body[:length]))
            data = body[length:]
    return found


def test_a_connection_may_mix_both_ways_in_any_order(port, snapshot_path) -> None:
    users = hfh_embed.open(snapshot_path)["users"]
    plain = f"content-type: {BINARY}"
    wanted = [np.array([number], "<i8") for number in range(60)]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for number, ids in enumerate(wanted):
            request = _request(LOOKUP, ids.tobytes(), plain, *(["x-other: 1"] if number % 3 == 1 else []))
            if number % 5 == 4:  # in pieces
                for start in range(0, len(request), 40):
                    connection.sendall(request[start : start + 40])
                    time.sleep(0.002)
            else:
                connection.sendall(request)
            [(status, _, body)] = _read(connection, 1)
            assert (status, body) == (200, users.lookup(ids).tobytes())


def test_pipelined_requests_are_answered_in_order(port, snapshot_path) -> None:
    users = hfh_embed.open(snapshot_path)["users"]
    plain = f"content-type: {BINARY}"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        several = [_request(LOOKUP, np.array([number], "<i8").tobytes(), plain) for number in range(20)]
        several[7] = _request("/v1/tables", b"", start="GET {path} HTTP/1.1")
        connection.sendall(b"".join(several[:10]))
        connection.sendall(several[10])  # whole and alone, but others are still being answered
        connection.sendall(b"".join(several[11:]))
        for number, (status, _, body) in enumerate(_read(connection, 20)):
            assert status == 200
            if number == 7:
                assert orjson.loads(body)["tables"]
            else:
                assert body == users.lookup([number]).tobytes()


def test_an_idle_connection_is_closed_and_a_used_one_is_not(port) -> None:
    request = _request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        began = time.monotonic()
        for _ in range(5):
            connection.sendall(request)
            assert _read(connection, 1)[0][0] == 200
            time.sleep(0.4)
        assert time.monotonic() - began > 1.5
        assert connection.recv(1) == b""
        assert time.monotonic() - began > 2.5


def test_a_client_that_never_reads_does_not_fill_the_memory(port) -> None:
    request = _request(LOOKUP, np.arange(1_000, dtype="<i8").tobytes(), f"content-type: {BINARY}")
    with socket.create_connection(("127.0.0.1", port), timeout=0.5) as connection, pytest.raises(TimeoutError):
        connection.sendall(request * 4_000)  # 640 MB of answers
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(_request(LOOKUP, IDS.tobytes(), f"content-type: {BINARY}"))
        assert _read(connection, 1)[0][0] == 200
