"""What connections may cost: how many there are, how long a head may take, how much unread answers may hold.

uvicorn's protocol leaves these open: a client that sends its headers byte by byte, endless headers, or never reads its answers
would keep memory for as long as it likes. One look a second at all connections finds them, so a request pays almost nothing.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import error_body

if TYPE_CHECKING:
    from service.state import State

__all__ = ["Connections", "Protocol", "refuse_connection"]

MOST_HEAD_BYTES = 65_536
LINGER_S = 1.0
WIRE_SHARE = 8  # a chunked body may take this many times its bytes: its smallest chunks take six for one
OPEN_PATHS = ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")


class Connections:
    """The connections of one process, and what their clients have not read."""

    def __init__(self) -> None:
        self.open: set[Protocol] = set()
        self.tasks: set[Any] = set()
        self.stalled: dict[Protocol, _Stall] = {}  # oldest first

    @property
    def unread_bytes(self) -> int:
        """Bytes of answers that wait for clients."""
        return sum(stall.bytes for stall in self.stalled.values())


class _Stall:
    """A client that does not read: since when it made no progress, and what is left."""

    __slots__ = ("bytes", "since_s")

    def __init__(self, left: int) -> None:
        self.bytes, self.since_s = left, time.monotonic()


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with bounds. The application that it serves must have a ``state``."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.state: State = self.app.state
        settings = self.state.settings
        self._most_wire_bytes = MOST_HEAD_BYTES + WIRE_SHARE * settings.max_body_bytes
        self._current: Any = None
        self._received, self._begun = 0, 0
        self.between_requests = True
        self.head_since_s: float | None = None
        self.state.connections.open = self.connections
        self.state.connections.tasks = self.tasks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.head_since_s = None
        most, now = self.state.settings.max_connections, len(self.connections)
        if now > most:
            self.count("connections")
            if now > 2 * most + 64:
                transport.abort()
            else:
                self.app = refuse_connection(self.app)

    def connection_lost(self, exc: Exception | None) -> None:
        self.state.connections.stalled.pop(self, None)
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self.between_requests = False
        self._begun += 1
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self.between_requests = True
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        first = self._begun + self.between_requests
        super().data_received(data)
        scope = self.scope
        if scope is not self._current:
            self._current, self._received = scope, 0
        if self._begun == first:  # all of it belongs to one request, else who knows how much to the last
            self._received += len(data)
        cycle = self.cycle
        if scope is not None and (cycle is None or cycle.scope is not scope):
            if self.head_since_s is None:
                self.head_since_s = self.loop.time()
            if self._received > MOST_HEAD_BYTES:
                self._refuse(431, "head_too_large", f"headers of more than {MOST_HEAD_BYTES:,} bytes; send fewer")
        elif self.head_since_s is not None:
            self.head_since_s = None
        if self._received > self._most_wire_bytes:
            self.count("too_many_bytes")
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._write(400, "malformed_request", "this is not HTTP/1.1, or not valid; see the documentation at /docs")

    def pause_writing(self) -> None:
        super().pause_writing()
        connections = self.state.connections
        connections.stalled[self] = _Stall(self.transport.get_write_buffer_size())
        while connections.unread_bytes > self.state.settings.max_unread_bytes and len(connections.stalled) > 1:
            next(iter(connections.stalled)).drop("unread_answers")

    def resume_writing(self) -> None:
        super().resume_writing()
        self.state.connections.stalled.pop(self, None)

    def shutdown(self) -> None:
        """Called when the server stops: a connection without a request may begin one more, which is told to be the last."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LINGER_S, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def look(self, now_s: float) -> None:
        """Close what has taken too long; called about once a second. ``now_s`` is on the event loop's clock."""
        settings = self.state.settings
        if self.head_since_s is not None and now_s - self.head_since_s > settings.header_timeout_s:
            self._refuse(408, "head_timeout", f"the headers did not arrive within {settings.header_timeout_s:g} s")
        if self.cycle is None and self.timeout_keep_alive_task is None:  # it has not sent anything yet
            self.timeout_keep_alive_task = self.loop.call_later(settings.keep_alive_s, self.timeout_keep_alive_handler)
        stall = self.state.connections.stalled.get(self)
        if stall is not None:
            left = self.transport.get_write_buffer_size()
            if left < stall.bytes:
                stall.bytes, stall.since_s = left, time.monotonic()
            elif time.monotonic() - stall.since_s > settings.write_timeout_s:
                self.drop("unread_answer")

    def drop(self, reason: str) -> None:
        """End the connection at once, with what it has not read."""
        self.count(reason)
        self.state.connections.stalled.pop(self, None)
        self.transport.abort()

    def count(self, reason: str) -> None:
        """Count a refusal."""
        self.state.metrics.rejected.labels(reason).inc()

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _refuse(self, status: int, type_: str, message: str) -> None:
        self.count(type_)
        self.head_since_s = None
        if self.cycle is None or self.cycle.response_complete:
            self._write(status, type_, message)
        else:
            self.transport.abort()

    def _write(self, status: int, type_: str, message: str) -> None:
        body = error_body(status, type_, message)
        head = b"HTTP/1.1 %d \r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)
        self.transport.write_eof()
        self.transport.pause_reading()  # closing with unread bytes would reset the connection before this was read
        self.loop.call_later(LINGER_S, self.transport.abort)


def refuse_connection(app: Any) -> Any:
    """An application for a connection that is one too many: health is answered, the rest gets 503, and it ends."""

    async def refuse(scope: Any, receive: Any, send_message: Any) -> None:
        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send_message(message)

        if scope["path"] in OPEN_PATHS:
            return await app(scope, receive, answer)
        return await app.refuse(scope, answer)

    return refuse
