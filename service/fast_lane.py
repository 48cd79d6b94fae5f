"""Requests that can be answered at once, straight from the socket: no task, no ASGI messages, no second parse of a known head.

A request takes the lane when it arrived whole, alone and with nothing of its connection unfinished, its head has only the headers
named below, and its rows need no other thread. Everything else goes uvicorn's way, and gets the same answers: both use
:class:`~service.fast_path.FastPath` for what a request means. Heads are only ever parsed by httptools; what one says is
remembered under its very bytes, because a client that keeps its connection sends the same head again and again.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import httptools
import numpy.typing as npt

from hfh_embed.errors import InputError
from service import connections, wire
from service.calls import RequestIds
from service.errors import ApiError, RefusalError, error_body
from service.pinning import named
from service.wire import Output

if TYPE_CHECKING:
    from service.fast_path import FastPath, Question

Rows = npt.NDArray[Any]
Write = Callable[[tuple[bytes, bytes | memoryview]], None]

__all__ = ["Lane", "Protocol", "find_route"]

HEADERS = frozenset(
    (b"host", b"user-agent", b"accept", b"accept-encoding", b"connection", b"content-type", b"content-length")
)
PLAIN_PATH = re.compile(rb"[A-Za-z0-9_.~/-]+")
MOST_HEAD_BYTES, MOST_BODY_BYTES, MOST_HEADS = 1_024, 65_536, 256
PREFIX = "/v1/tables/"
ROUTES = ("lookup", "bag")
END = b"\r\n\r\n"
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
INTERNAL = ApiError(500, "internal", "the service failed at this request; its log has the details")
log = logging.getLogger("hfh.service")


class Plan(NamedTuple):
    """What a head asks for."""

    route: str
    name: str
    media: str
    output: Output
    query: bytes
    length: int


class Lane:
    """Answers of one process's fast path as bytes for a socket."""

    def __init__(self, path: FastPath) -> None:
        self._path = path
        self._plans: dict[bytes, Plan | None] = {}
        self._new_id = RequestIds()
        settings = path.state.settings
        self._plain = not (settings.deadline_ms or settings.access_log or settings.otel_endpoint)

    def take(self, data: bytes, write: Write) -> bool:
        """Answer one whole request by ``write``, now or with the next batch; False when it has to go the long way."""
        end = data.find(END, 0, MOST_HEAD_BYTES) + len(END)
        state = self._path.state
        if end < len(END) or len(data) - end > MOST_BODY_BYTES or not self._is_open():
            return False
        head = data[:end]
        try:
            plan = self._plans[head]
        except KeyError:
            plan = self._remember(head)
        if plan is None or len(data) - end != plan.length or plan.length > state.settings.max_body_bytes:
            return False
        began = time.perf_counter()
        route, name, media, output, query, _ = plan
        outcome: Rows | Exception | None
        try:
            asked = self._path.question(named(state.catalog, name), route, name, media, data[end:], query, output)
            dtype, reconstructor = wire.DTYPES[output.dtype], state.reconstructor
            if asked.bag is None and reconstructor.batches(asked.served, len(asked.ids)):
                done = partial(self._finish, route, asked, began, write)
                reconstructor.enqueue(asked.served, asked.ids, dtype, done)
                return True
            outcome = reconstructor.at_once(asked.served, asked.ids, dtype, asked.bag)
            if outcome is None:
                return False
        except Exception as error:
            self._refuse(route, error, write)
        else:
            self._finish(route, asked, began, write, outcome)
        return True

    def _is_open(self) -> bool:
        """Whether requests now need nothing that only the long way does: keys, deadlines, logs, traces, goodbyes, marks."""
        state = self._path.state
        return self._plain and state.ready and not state.keys and not state.overlay.stale

    def flush(self) -> None:
        """Answer what waits for a batch."""
        self._path.state.reconstructor.flush()

    def _finish(self, route: str, asked: Question, began: float, write: Write, outcome: Rows | Exception) -> None:
        tally = self._path.state.metrics.tally
        try:
            if isinstance(outcome, Exception):
                raise outcome
            content, headers = self._path.answer(asked, outcome)
            described = b"".join([b"%b: %b\r\n" % header for header in headers])
            top = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n%bx-request-id: %b\r\n\r\n" % (
                asked.output.media.encode(),
                len(content),
                described,
                self._new_id(),
            )
            tally.took(route, time.perf_counter() - began)
            tally.answered(route, 200)
        except Exception as error:
            self._refuse(route, error, write)
        else:
            write((top, content))

    def _refuse(self, route: str, error: Exception, write: Write) -> None:
        name = self._new_id()
        if isinstance(error, InputError):
            error = wire.invalid(str(error))
        elif not isinstance(error, ApiError):
            log.error("lookup failed", exc_info=error, extra={"fields": {"request": name.decode()}})
            error = INTERNAL
        metrics = self._path.state.metrics
        metrics.tally.answered(route, error.status)
        if isinstance(error, RefusalError):
            metrics.rejected.labels(error.type).inc()
        write(_refusal(error, name))

    def _remember(self, head: bytes) -> Plan | None:
        if len(self._plans) >= MOST_HEADS:
            self._plans.clear()
        plan = self._plans[head] = _read(head)
        return plan


def find_route(path: str) -> tuple[str, str] | None:
    """The lookup route that a path names, and its table."""
    if path == "/v1/lookup":
        return "tables", ""
    if path.startswith(PREFIX):
        name, slash, route = path[len(PREFIX) :].rpartition("/")
        if slash and route in ROUTES:
            return route, name
    return None


class _Head:
    """What httptools finds in a head."""

    def __init__(self) -> None:
        self.url, self.headers, self.fits = b"", dict[bytes, bytes](), True

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.fits = self.fits and name in HEADERS and name not in self.headers
        self.headers[name] = value

    def on_body(self, _: bytes) -> None:
        self.fits = False  # these bytes hold more than one head

    def on_message_complete(self) -> None:
        self.fits = False


def _read(head: bytes) -> Plan | None:
    """What a head asks for; None when the lane is not for it, or it is not valid."""
    found = _Head()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(head)
        url = httptools.parse_url(found.url)
        length = int(found.headers.get(b"content-length", b""))
    except (httptools.HttpParserError, httptools.HttpParserUpgrade, ValueError):
        return None
    keeps = parser.get_http_version() == "1.1" and parser.should_keep_alive()
    if not (found.fits and keeps and parser.get_method() == b"POST" and PLAIN_PATH.fullmatch(url.path)):
        return None
    route = find_route(url.path.decode())
    if route is None or route[0] == "tables" or b"version" in (url.query or b""):
        return None
    try:
        media = wire.media_type(found.headers.get(b"content-type", b""))
        output = wire.negotiate(found.headers.get(b"accept", b""), media)
    except ApiError:
        return None
    return Plan(*route, media, output, url.query or b"", length)


def _refusal(error: ApiError, name: bytes) -> tuple[bytes, bytes]:
    body = error_body(error.status, error.type, error.message)
    extra = b"".join(b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in error.headers.items())
    head = b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%bx-request-id: %b\r\n\r\n"
    return head % (STATUS_LINES[error.status], len(body), extra, name), body


class Protocol(connections.Protocol):
    """The service's HTTP protocol with the lane beside it. Its application has the lane as ``lane``."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._served = self.app
        self._lane: Lane = self.app.lane
        self._waits = False
        self._used_s = 0.0

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        if self._waits:  # the client did not wait for its answer: it comes first
            self._lane.flush()
        idle = self.between_requests and (cycle is None or cycle.response_complete)
        if idle and not self.flow.write_paused and self.app is self._served:  # not one that refuses the connection
            self._waits = True
            if self._lane.take(data, self._reply):
                return
            self._waits = False
        super().data_received(data)

    def shutdown(self) -> None:
        if self._waits:
            self._lane.flush()
        super().shutdown()

    def _reply(self, answer: tuple[bytes, bytes | memoryview]) -> None:
        self._waits = False
        if self.transport.is_closing():
            return
        self.transport.writelines(answer)
        self.server_state.total_requests += 1
        self._used_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._expect_more(self.timeout_keep_alive)

    def _expect_more(self, within_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(within_s, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, unless the lane was used since this was arranged."""
        left_s = self._used_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0 or self._waits:
            self._expect_more(max(1.0, left_s))
        else:
            super().timeout_keep_alive_handler()
