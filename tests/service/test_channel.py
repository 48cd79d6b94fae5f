"""The client's HTTP against servers that behave, and that do not."""

import multiprocessing
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

import pytest

from service.channel import Channels

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


@contextmanager
def _server(*connections: Callable[[socket.socket], None]):
    """A server whose n-th connection is treated by the n-th function."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for treat in connections:
                accepted, _ = listener.accept()
                with accepted:
                    treat(accepted)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5)
        assert not thread.is_alive()


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += (more := connection.recv(65536))
        if not more:
            return b""
    return data


def _says(*parts: bytes, pause_s: float = 0.0) -> Callable[[socket.socket], None]:
    def treat(connection: socket.socket) -> None:
        while _request(connection):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)

    return treat


def _once(answer: bytes) -> Callable[[socket.socket], None]:
    def treat(connection: socket.socket) -> None:
        _request(connection)
        connection.sendall(answer)

    return treat


@contextmanager
def _channels(url: str, timeout_s: float = 5.0, retries: int = 0):
    channels = Channels(url, timeout_s, retries, 2)
    yield channels
    channels.close()


def _ask(channels: Channels) -> bytes:
    status, headers, body = channels.ask("POST", "/x", (("accept", "y"),), b"body")
    assert status == 200
    assert all(name == name.lower() for name in headers)
    return bytes(body)


def test_what_is_sent_is_a_request() -> None:
    seen = []

    def treat(connection: socket.socket) -> None:
        seen.append(connection.recv(65536))
        connection.sendall(OK)

    with _server(treat) as url, _channels(url + "/prefix/") as channels:
        assert _ask(channels) == b"hi"
    host = url.removeprefix("http://").encode()
    assert seen == [b"POST /prefix/x HTTP/1.1\r\nhost: " + host + b"\r\naccept: y\r\ncontent-length: 4\r\n\r\nbody"]


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        ((OK,), b"hi"),
        ((OK[:3], OK[3:20], OK[20:-1], OK[-1:]), b"hi"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length:0\r\n\r\n",), b""),
        ((b"HTTP/1.1 200 \r\nTransfer-Encoding: Chunked\r\n\r\n1\r\nh\r\n", b"1;x=y\r\ni\r", b"\n0\r\n\r\n"), b"hi"),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + bytes(70_000), bytes(30_000)), bytes(100_000)),
    ],
)
def test_answers_in_any_pieces(parts: tuple[bytes, ...], body: bytes) -> None:
    with _server(_says(*parts, pause_s=0.01)) as url, _channels(url) as channels:
        for _ in range(3):  # on one connection
            assert _ask(channels) == body


def test_a_connection_that_was_closed_while_idle_is_replaced_at_once() -> None:
    with _server(_once(OK), _once(OK), _once(OK)) as url, _channels(url, retries=0) as channels:
        for _ in range(3):
            assert _ask(channels) == b"hi"
            time.sleep(0.05)


def test_a_connection_that_is_to_be_closed_is_not_kept() -> None:
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: Close\r\n\r\n")
    with _server(_once(closing), _once(closing)) as url, _channels(url) as channels:
        assert _ask(channels) == b"hi"
        assert _ask(channels) == b"hi"


def test_a_broken_connection_is_tried_again() -> None:
    with _server(_once(b""), _once(OK[:-1]), _once(OK)) as url, _channels(url, retries=2) as channels:
        assert _ask(channels) == b"hi"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", ConnectionError),
        (OK[:-1], ConnectionError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nh", ConnectionError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", ValueError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\n", ValueError),
        (OK + b"more", ValueError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", ValueError),
        (b"HTTP/1.1 200 OK\r\n\r\n", ValueError),
        (b"SSH-2.0-OpenSSH\r\n\r\n", ValueError),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", ValueError),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 100_000, ValueError),
    ],
)
def test_what_is_no_answer_is_told(answer: bytes, error: type[Exception]) -> None:
    with _server(_once(answer)) as url, _channels(url) as channels, pytest.raises(error):
        _ask(channels)


@pytest.mark.parametrize("answer", [b"", OK[:10], OK[:-1]])
def test_a_server_that_is_too_slow_is_given_up(answer: bytes) -> None:
    done = threading.Event()

    def treat(connection: socket.socket) -> None:
        _request(connection)
        connection.sendall(answer)
        done.wait(5)

    with _server(treat) as url, _channels(url, timeout_s=0.2, retries=2) as channels:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            _ask(channels)
        done.set()
        assert time.monotonic() - began < 3


def test_many_threads_get_their_own_answers() -> None:
    def echo(connection: socket.socket) -> None:
        with connection:
            while data := _request(connection):
                body = data.partition(b"\r\n\r\n")[2]
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            while True:
                try:
                    accepted, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=echo, args=(accepted,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        channels, wrong = Channels(url, 5, 0, 3), []

        def ask(name: int) -> None:
            for number in range(200):
                body = b"%d-%d" % (name, number)
                if bytes(channels.ask("POST", "/", (), body)[2]) != body:
                    wrong.append(body)

        threads = [threading.Thread(target=ask, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not wrong
        assert len(channels._idle) <= 3
        channels.close()
        listener.shutdown(socket.SHUT_RDWR)


def test_a_forked_process_does_not_read_its_parents_answers() -> None:
    with _server(_says(OK), _says(OK)) as url, _channels(url) as channels:
        assert _ask(channels) == b"hi"
        assert len(channels._idle) == 1
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=lambda: queue.put(len(channels._idle)))
        child.start()
        child.join(10)
        assert queue.get() == 0
        assert _ask(channels) == b"hi"
        channels.close()
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))).close()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://here", "http://", ""])
def test_a_wrong_url_is_told(url: str) -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        Channels(url, 1, 0, 1)
