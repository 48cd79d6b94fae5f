"""Clients that are slow, silent, endless, many, or never read: each is bounded, and the others do not notice."""

import re
import resource
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

import hfh_embed
from service.client import Client, ServiceError
from tests.service.conftest import serving

HEAD = b"POST /v1/tables/users/lookup HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\n"


@contextmanager
def _connected(url: str, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(20)
        connection.connect((host, int(port)))
        yield connection


def _rest(connection: socket.socket) -> bytes:
    """All that still comes; a reset ends it too."""
    answer = b""
    try:
        while chunk := connection.recv(65536):
            answer += chunk
    except ConnectionResetError:
        pass
    return answer


def _send_slowly(connection: socket.socket, data: bytes, pause_s: float, size: int = 1) -> float:
    """Send in pieces until the other side has had enough; the seconds that took."""
    began = time.monotonic()
    try:
        for start in range(0, len(data), size):
            connection.sendall(data[start : start + size])
            time.sleep(pause_s)
    except OSError:
        pass
    return time.monotonic() - began


def _lookup(size: int) -> bytes:
    ids = np.arange(size) % 500
    return HEAD + b"content-length: %d\r\n\r\n" % (8 * size) + ids.astype("<i8").tobytes()


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def _metric(url: str, name: str) -> float:
    text = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _works(url: str, snapshot_path) -> None:
    with Client(url, retries=0) as client:
        assert np.array_equal(client.lookup("users", [1, 2]), hfh_embed.open(snapshot_path)["users"].lookup([1, 2]))


def test_headers_that_come_byte_by_byte_end_with_408(snapshot_path) -> None:
    with serving(str(snapshot_path), "--header-timeout-s", "0.5") as (url, _):
        with _connected(url) as first, _connected(url) as kept:
            kept.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b'"ok"}'):
                answer += kept.recv(65536)
            for connection in (first, kept):  # the first request of a connection, and a later one
                assert _send_slowly(connection, HEAD, 0.1) < 0.1 * len(HEAD)
                assert b" 408 " in _rest(connection)
        _works(url, snapshot_path)
        assert _metric(url, 'hfh_rejected_total{reason="head_timeout"}') == 2


def test_a_head_that_never_ends_gets_431(snapshot_path) -> None:
    with serving(str(snapshot_path)) as (url, _):
        for endless in (b"x-%d: " + b"v" * 1000 + b"\r\n", b"a" * 1000 + b"%d"):
            with _connected(url) as connection:
                data = HEAD + b"".join(endless % number for number in range(1000))
                _send_slowly(connection, data, 0.001, 8192)
                assert b" 431 " in _rest(connection)
        _works(url, snapshot_path)


def test_a_head_cut_behind_many_requests_is_not_taken_for_a_long_one(snapshot_path) -> None:
    with serving(str(snapshot_path)) as (url, _), _connected(url) as connection:
        one = _lookup(1_000)
        connection.sendall(one * 30 + one[:20])
        time.sleep(0.3)
        connection.sendall(one[20:])
        answer = b""
        while answer.count(b"HTTP/1.1 200") < 31:
            answer += (more := connection.recv(1 << 20))
            assert more, answer[-300:]


def test_trailers_and_chunk_overhead_are_bounded(snapshot_path) -> None:
    with serving(str(snapshot_path), "--max-body-bytes", "1000", "--body-timeout-s", "60") as (url, _):
        for endless in (b"0\r\n" + b"x: " + b"v" * 500_000, b"1;" + b"e" * 500_000):
            with _connected(url) as connection:
                _send_slowly(connection, HEAD + b"transfer-encoding: chunked\r\n\r\n" + endless, 0.001, 8192)
                _rest(connection)
        _works(url, snapshot_path)
        assert _metric(url, 'hfh_rejected_total{reason="too_many_bytes"}') == 2


def test_a_connection_that_says_nothing_is_closed_after_its_idle_time(snapshot_path) -> None:
    with serving(str(snapshot_path), "--keep-alive-s", "1") as (url, _), _connected(url) as connection:
        began = time.monotonic()
        assert _rest(connection) == b""
        assert 0.9 < time.monotonic() - began < 30


def test_one_connection_too_many_gets_503_and_health_still_answers(snapshot_path) -> None:
    with serving(str(snapshot_path), "--max-connections", "10") as (url, _), ExitStack() as stack:
        first = stack.enter_context(_connected(url))
        for _ in range(9):
            stack.enter_context(_connected(url))
        time.sleep(0.2)
        with Client(url, retries=0) as client, pytest.raises(ServiceError, match="max_connections") as caught:
            client.lookup("users", [1])
        assert (caught.value.status, caught.value.type) == (503, "too_many_connections")
        with _connected(url) as connection:
            connection.sendall(b"GET /v2/models HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = _rest(connection)
            assert b"503" in answer
            assert b"retry-after: 1" in answer
            assert b'{"error":"more than 10 connections' in answer
        assert urllib.request.urlopen(f"{url}/livez", timeout=5).status == 200
        first.sendall(_lookup(2))
        assert b" 200 " in first.recv(65536), "those that were there first go on"
        with ExitStack() as flood:  # dropped at once, beyond some that are told
            many = [flood.enter_context(_connected(url)) for _ in range(150)]
            time.sleep(0.3)
            assert sum(_is_closed(connection) for connection in many) >= 150 - (10 + 64)
        time.sleep(0.3)
        assert _metric(url, "hfh_connections") == 11
    with serving(str(snapshot_path), "--max-connections", "2") as (url, _):
        for _ in range(5):
            _works(url, snapshot_path)


def test_a_client_that_never_reads_is_dropped_and_one_that_reads_slowly_is_not(snapshot_path) -> None:
    size = 60_000  # 9.6 MB of answer
    with serving(str(snapshot_path), "--write-timeout-s", "1.5") as (url, _):
        with _connected(url, 4096) as never, _connected(url, 65536) as slow:
            for connection in (never, slow):
                connection.sendall(_lookup(size))
            began, received = time.monotonic(), 0
            _works(url, snapshot_path)
            while _metric(url, "hfh_unread_bytes") < 1_000_000:
                assert time.monotonic() - began < 20
            while time.monotonic() - began < 4:  # at most 1.6 MB a second, so that much is left when this ends
                received += len(slow.recv(32_000))
                time.sleep(0.02)
            while received <= size * 160:
                received += len(slow.recv(1_000_000))
            assert len(_rest(never)) < size * 160
        assert _metric(url, 'hfh_rejected_total{reason="unread_answer"}') == 1
        assert _metric(url, "hfh_unread_bytes") == 0


def test_what_many_clients_do_not_read_is_bounded(snapshot_path) -> None:
    size, most = 60_000, 20_000_000
    with serving(str(snapshot_path), "--max-unread-bytes", str(most)) as (url, process), ExitStack() as stack:
        _works(url, snapshot_path)
        before = _resident(process.pid)
        for _ in range(60):  # 576 MB of answers
            connection = stack.enter_context(_connected(url, 4096))
            connection.sendall(_lookup(size))
            _works(url, snapshot_path)
        dropped, deadline = 0.0, time.monotonic() + 20
        while dropped < 57 and time.monotonic() < deadline:  # connections are looked at once a second
            time.sleep(0.1)
            dropped = _metric(url, 'hfh_rejected_total{reason="unread_answers"}')
        grown, unread = _resident(process.pid) - before, _metric(url, "hfh_unread_bytes")
        print(f"unread {unread / 1e6:.1f} MB, resident memory grew by {grown / 1e6:.1f} MB")
        assert 0 < unread <= most
        assert grown < 60 * size * 160 / 2, "the allocator keeps something, but no part of each answer"
        assert dropped >= 57
        _works(url, snapshot_path)


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_two_thousand_idle_connections_cost_little(snapshot_path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2_200
    if hard < needed:
        pytest.skip(f"the system allows {hard} open files (ulimit -Hn); {needed} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    with serving(str(snapshot_path)) as (url, process), ExitStack() as stack:
        _works(url, snapshot_path)
        before = _resident(process.pid)
        for _ in range(2_000):
            stack.enter_context(_connected(url))
        time.sleep(1.5)
        assert _metric(url, "hfh_connections") >= 2_000
        grown = _resident(process.pid) - before
        with Client(url) as client:
            times = []
            for _ in range(200):
                began = time.perf_counter()
                client.lookup("users", [1])
                times.append(time.perf_counter() - began)
        lag = _metric(url, "hfh_event_loop_lag_seconds")
        print(f"{grown / 2000:,.0f} bytes each; lookups p50 {np.median(times) * 1e3:.2f} ms, lag {lag * 1e3:.1f} ms")
        assert grown < 2_000 * 65_536
        _works(url, snapshot_path)


def test_clients_that_vanish_in_the_middle_leave_nothing_behind(snapshot_path) -> None:
    with serving(str(snapshot_path), "--body-timeout-s", "1") as (url, _):
        _works(url, snapshot_path)
        for cut in (10, len(HEAD), len(HEAD) + 30):
            for _ in range(30):
                with _connected(url) as connection:
                    connection.sendall(_lookup(100)[:cut])
                    connection.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                    )  # a reset, no goodbye
        with _connected(url) as half:  # its sending side ends, as of a client that died behind a proxy
            half.sendall(_lookup(100)[:-8])
            half.shutdown(socket.SHUT_WR)
            _rest(half)
        time.sleep(1.2)
        assert _metric(url, "hfh_connections") <= 2
        assert _metric(url, "hfh_in_flight_ids") == 0
        assert _metric(url, "hfh_in_flight_requests") == 1  # this one
        _works(url, snapshot_path)


def test_what_is_not_http_gets_400_in_the_one_shape(snapshot_path) -> None:
    with serving(str(snapshot_path)) as (url, _), _connected(url) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = _rest(connection)
        assert b" 400 " in answer
        assert b'"type":"malformed_request"' in answer
