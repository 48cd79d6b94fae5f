"""Back-pressure, counted in ids: a process answers a bounded number at once and refuses the rest with 429."""

from __future__ import annotations

from service.calls import CALL, refusal

__all__ = ["InFlight"]


class InFlight:
    """The ids being answered now. Used as ``with in_flight.take(n):``."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = 0

    def take(self, count: int) -> _Taken:
        """Reserve room for ``count`` ids until the block ends; 429 when there is none, 504 or 499 when it is too late."""
        call = CALL.get()
        if call is not None:
            call.check()
        if self.now and self.now + count > self.most:
            raise refusal(
                429,
                "over_capacity",
                f"{self.now:,} ids are being answered and at most {self.most:,} may be; try again",
                {"retry-after": "1"},
            )
        return _Taken(self, count)


class _Taken:
    def __init__(self, owner: InFlight, count: int) -> None:
        self._owner, self._count = owner, count

    def __enter__(self) -> None:
        self._owner.now += self._count

    def __exit__(self, *_: object) -> None:
        self._owner.now -= self._count
