"""The synchronous client's HTTP: connections that are kept, one write for a request, one buffer for an answer.

The general HTTP libraries cost more for a call than the service does; what is needed of HTTP/1.1 here is little, so here it is. An
answer's body has its length in the head or comes in chunks; redirects and cookies do not occur.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import urlsplit
from weakref import WeakSet

__all__ = ["Answer", "Channels"]

Headers = tuple[tuple[str, str], ...]
Answer = tuple[int, Mapping[str, str], bytearray]
HEAD_END = b"\r\n\r\n"
MOST_HEAD_BYTES = 65_536
PIECE_BYTES = 65_536


class _EndedError(ConnectionError):
    """The other side closed the connection before an answer began: it was idle for too long, or the server stops."""


_EVERY: WeakSet[Channels] = WeakSet()


def _forget_connections() -> None:
    """A forked process must not read the answers to its parent's questions."""
    for channels in list(_EVERY):
        channels.close()  # of the child's copies alone: the parent's stay open


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)


class Channels:
    """Kept connections to one server, for any number of threads."""

    def __init__(self, url: str, timeout_s: float, retries: int, most_kept: int) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is {url!r}; give http://host:port or https://host:port")
        self._address = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host, self._prefix = parts.netloc.rpartition("@")[2], parts.path.rstrip("/")
        self._timeout_s, self._retries, self._most_kept = timeout_s, retries, most_kept
        self._idle: list[_Channel] = []
        _EVERY.add(self)

    def ask(self, method: str, path: str, headers: Headers, body: bytes) -> Answer:
        """Status, headers (lower-case names) and body of an answer. A connection that broke is tried again, after a pause.

        Raises:
            OSError: no answer; TimeoutError when it took too long.
            ValueError: what answered does not speak HTTP/1.1.
        """
        begin = _begin(method, self._prefix + path, self._host, headers)
        request = b"%b%d\r\n\r\n%b" % (begin, len(body), body)
        left, pause_s = self._retries, 0.1
        while True:
            channel, kept = None, bool(self._idle)
            try:
                channel = self._idle.pop() if kept else self._connect()
                answer, reusable = channel.exchange(request)
            except BaseException as error:
                if channel is not None:
                    channel.close()
                if kept and isinstance(error, IndexError if channel is None else _EndedError):
                    continue  # another thread took it, or it was closed while it was idle: no failure
                if not left or not isinstance(error, OSError) or isinstance(error, TimeoutError):
                    raise
            else:
                if reusable and len(self._idle) < self._most_kept:
                    self._idle.append(channel)
                else:
                    channel.close()
                return answer
            time.sleep(pause_s)
            left, pause_s = left - 1, pause_s * 2

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _connect(self) -> _Channel:
        connection = socket.create_connection(self._address, self._timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            return _Channel(self._tls.wrap_socket(connection, server_hostname=self._address[0]))
        if sys.platform != "win32":  # the kernel keeps the time: Python would ask before every read whether it may
            seconds, rest = divmod(self._timeout_s, 1)
            limit = struct.pack("@ll", int(seconds), max(1, int(rest * 1e6)))
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        return _Channel(connection)


class _Channel:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def close(self) -> None:
        self._socket.close()

    def exchange(self, request: bytes) -> tuple[Answer, bool]:
        """The answer, and whether the connection may be used again."""
        try:
            self._socket.sendall(request)
            data = self._socket.recv(PIECE_BYTES)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise _EndedError(*error.args) from error
        except BlockingIOError:
            raise _late() from None
        if not data:
            raise _EndedError("the server closed the connection")
        while (end := data.find(HEAD_END)) < 0:
            if len(data) > MOST_HEAD_BYTES:
                raise ValueError("the headers of the answer do not end")
            data += self._more()
        status, headers, length, reusable = _head(data[:end])
        start = end + len(HEAD_END)
        if len(data) - start == length:  # the usual case: all at once
            body = bytearray(memoryview(data)[start:])
        elif length is None:
            body = self._chunks(bytearray(data[start:]))
        else:
            body = self._rest(memoryview(data)[start:], length)
        return (status, headers, body), reusable

    def _more(self) -> bytes:
        try:
            data = self._socket.recv(PIECE_BYTES)
        except BlockingIOError:
            raise _late() from None
        if not data:
            raise ConnectionError("the connection ended in the middle of an answer")
        return data

    def _rest(self, begun: memoryview, length: int) -> bytearray:
        have = len(begun)
        if have > length:
            raise ValueError("the answer is longer than it says")
        body = bytearray(length)
        view = memoryview(body)
        view[:have] = begun
        while have < length:
            try:
                got = self._socket.recv_into(view[have:])
            except BlockingIOError:
                raise _late() from None
            if not got:
                raise ConnectionError("the connection ended in the middle of an answer")
            have += got
        return body

    def _chunks(self, data: bytearray) -> bytearray:
        body = bytearray()
        while True:
            while (end := data.find(b"\r\n", 0, MOST_HEAD_BYTES)) < 0:
                if len(data) > MOST_HEAD_BYTES:
                    raise ValueError("a chunk of the answer has no length")
                data += self._more()
            digits = bytes(data[:end]).partition(b";")[0].strip()
            if not digits.isalnum():
                raise ValueError(f"a chunk of the answer has the length {digits[:40]!r}")
            size = int(digits, 16)
            whole = end + 2 + size + 2
            while len(data) < whole:
                data += self._more()
            body += data[end + 2 : whole - 2]
            del data[:whole]
            if not size:
                if data:
                    raise ValueError("the answer is longer than it says")
                return body  # trailers do not occur


def _late() -> TimeoutError:
    return TimeoutError("there was no answer in time")


@lru_cache(maxsize=256)
def _begin(method: str, path: str, host: str, headers: Headers) -> bytes:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    return f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n{lines}content-length: ".encode("latin-1")


@lru_cache(maxsize=256)
def _head(data: bytes) -> tuple[int, Mapping[str, str], int | None, bool]:
    """Status, headers, the body's length (None: in chunks), and whether the connection stays."""
    first, *lines = data.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if version != "HTTP/1.1" or not rest[:3].isdigit():
        raise ValueError(f"the answer begins with {first[:40]!r}, which is not HTTP/1.1")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    stays = headers.get("connection", "").lower() != "close"
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return int(rest[:3]), headers, None, stays
    length = headers.get("content-length", "")
    if not length.isdigit():
        raise ValueError(f"the answer's length is {length[:40]!r}")
    return int(rest[:3]), headers, int(length), stays
