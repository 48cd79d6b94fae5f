"""What stands in front of everything, as plain ASGI: request ids, keys, deadlines, the access log, goodbyes while draining."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from service.auth import needed_scope
from service.calls import CALL, Call, RequestIds
from service.errors import ApiError, bad_request
from service.exchange import send_error
from service.fast_lane import Lane
from service.housekeeping import Housekeeping
from service.state import State

__all__ = ["Guard"]

Scope = dict[str, Any]
Application = Callable[..., Awaitable[None]]
READ_HEADERS = frozenset({b"authorization", b"x-api-key", b"x-request-id", b"x-hfh-timeout-ms"})
CLOSE = (b"connection", b"close")
STALE = (b"x-hfh-overlay", b"stale")
MOST_MS = 3_600_000
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
access = logging.getLogger("hfh.access")


class Guard:
    """An ASGI application around another one. ``state`` and ``lane`` are for the protocol and the process that run it."""

    def __init__(self, app: Application, state: State, lane: Lane | None = None) -> None:
        self._app, self.state, self.lane = app, state, lane
        self._new_id = RequestIds()
        self._deadline_s = None if state.settings.deadline_ms is None else state.settings.deadline_ms / 1000
        self._access_log = state.settings.access_log

    async def __call__(self, scope: Scope, receive: Any, send_message: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] != "lifespan":
                return await self._app(scope, receive, send_message)
            async with Housekeeping(self.state):
                return await self._app(scope, receive, send_message)
        call = Call(getattr(receive, "__self__", None))  # the server's object for this request, where it has one
        CALL.set(call)
        given = {name: value for name, value in scope["headers"] if name in READ_HEADERS}
        requested = given.get(b"x-request-id")
        if requested is not None and _SANE_ID.fullmatch(requested):
            call.id = requested
        else:
            call.id = self._new_id()
        began_s = time.monotonic() if self._access_log else 0.0
        started = False

        async def answer(message: dict[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = [*message.get("headers", ()), (b"x-request-id", call.id)]
                if not self.state.ready:
                    headers.append(CLOSE)
                if self.state.overlay.stale:
                    headers.append(STALE)
                message["headers"] = headers
                if call.refused is not None:
                    self.state.metrics.rejected.labels(call.refused).inc()
                if self._access_log:
                    self._log(scope, call, message["status"], began_s)
            await send_message(message)

        try:
            self._admit(scope, call, given)
            if call.deadline_s is None:
                return await self._app(scope, receive, answer)
            await self._in_time(call, scope, receive, answer)
        except ApiError as error:
            if started:
                raise
            await send_error(answer, error, scope["path"])

    async def refuse(self, scope: Scope, send_message: Any) -> None:
        """The answer on a connection that is one too many."""
        most = self.state.settings.max_connections
        message = f"more than {most:,} connections are open (max_connections); try again, or use fewer and keep them"
        error = ApiError(503, "too_many_connections", message, {"retry-after": "1"})
        await send_error(send_message, error, scope["path"])

    def _admit(self, scope: Scope, call: Call, given: dict[bytes, bytes]) -> None:
        """Whose request it is, and until when it may take; ApiError where it is not allowed."""
        state = self.state
        if state.keys:
            level = needed_scope(scope["method"], scope["path"], state.settings.metrics_open)
            if level is not None:
                call.key = state.keys.authorize(_key(given), level)
                call.rates = state.rates
        timeout = given.get(b"x-hfh-timeout-ms")
        if timeout is not None:
            if not timeout.isdigit() or not 1 <= int(timeout[:12]) <= MOST_MS:
                raise bad_request(f"X-HFH-Timeout-Ms must be milliseconds from 1 to {MOST_MS:,}")
            asked_s = int(timeout) / 1000
            within_s = asked_s if self._deadline_s is None else min(asked_s, self._deadline_s)
            call.deadline_s = time.monotonic() + within_s
        elif self._deadline_s is not None:
            call.deadline_s = time.monotonic() + self._deadline_s

    async def _in_time(self, call: Call, scope: Scope, receive: Any, answer: Any) -> None:
        assert call.deadline_s is not None
        left_s = call.deadline_s - time.monotonic()
        try:
            async with asyncio.timeout(left_s) as timeout:
                await self._app(scope, receive, answer)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise call.late() from None

    def _log(self, scope: Scope, call: Call, status: int, began_s: float) -> None:
        access.info(
            "request",
            extra={
                "fields": {
                    "method": scope["method"],
                    "path": scope["path"][:200],
                    "status": status,
                    "ms": round((time.monotonic() - began_s) * 1000, 3),
                    "client": scope["client"][0] if scope.get("client") else None,
                    "key": call.key.name if call.key else None,
                }
            },
        )


def _key(given: dict[bytes, bytes]) -> bytes:
    """The key that a request carries, empty if none."""
    bearer = given.get(b"authorization", b"")
    if bearer[:7].lower() == b"bearer ":
        return bearer[7:].strip()
    return given.get(b"x-api-key", b"").strip()
