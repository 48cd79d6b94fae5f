"""What is known of the request that is being answered: its id, its key, its deadline, and whether anyone still waits for it.

The guard sets it, the one place that computes rows asks it. It travels in a context variable, which costs less than passing it on
through every protocol's code.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from service.errors import ApiError, RefusalError

if TYPE_CHECKING:
    from service.auth import Key
    from service.rates import Rates

__all__ = ["CALL", "Call", "RequestIds", "refusal"]

Result = TypeVar("Result")


class Call:
    """One request. ``deadline_s`` is on ``time.monotonic``'s clock."""

    __slots__ = ("connection", "deadline_s", "id", "key", "rates", "refused")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.id = b""
        self.key: Key | None = None
        self.rates: Rates | None = None
        self.deadline_s: float | None = None
        self.refused: str | None = None

    def check(self) -> None:
        """Raise ApiError when no one wants the answer any more: 504 past the deadline, 499 when the client is gone."""
        if self.deadline_s is not None and time.monotonic() > self.deadline_s:
            raise self.late()
        if getattr(self.connection, "disconnected", False):
            raise refusal(499, "client_gone", "the client went away before its answer was computed", call=self)

    def late(self) -> ApiError:
        """504: the deadline passed before there was an answer."""
        message = "the request's deadline passed before its answer was ready; ask for less at once or allow more time"
        return refusal(504, "deadline_exceeded", message, call=self)

    def checked(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """``compute``, to be called later on another thread, refused there when no one wants it any more."""

        def run() -> Result:
            self.check()
            return compute()

        return run

    async def spend(self, ids: int) -> None:
        """Count ids against the key's rate; 429 when they are too many."""
        if self.rates is not None and self.key is not None and self.key.rate is not None:
            await self.rates.spend(self.key, self.key.rate, ids)


class RequestIds:
    """New ids of requests, one after the other: ``ids()``."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(4).encode()
        self._count = itertools.count(1)

    def __call__(self) -> bytes:
        return b"%b-%x" % (self._prefix, next(self._count))


CALL: ContextVar[Call | None] = ContextVar("hfh_call", default=None)


def refusal(
    status: int, type_: str, message: str, headers: Mapping[str, str] | None = None, *, call: Call | None = None
) -> RefusalError:
    """An error that is counted in ``hfh_rejected_total`` under its type: the service could not or would not, now."""
    call = call or CALL.get()
    if call is not None:
        call.refused = type_
    return RefusalError(status, type_, message, headers)
