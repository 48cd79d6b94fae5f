"""How many ids a key may ask for in a time: the library ``limits``, counting in this process or in Redis for all replicas."""

from __future__ import annotations

import logging
import math
import time

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import ConfigurationError
from limits.storage import storage_from_string

from hfh_embed.errors import InputError, MissingDependencyError
from service.auth import Key
from service.calls import refusal

__all__ = ["Rates"]

TIMEOUT_S, RETRY_S = 0.25, 5.0
SCHEMES = ("redis", "rediss", "redis+sentinel", "redis+cluster")
log = logging.getLogger("hfh.service")


class Rates:
    """Counts ids by key over a sliding window. While Redis does not answer each process counts for itself."""

    def __init__(self, url: str | None = None) -> None:
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = SlidingWindowCounterRateLimiter(_redis(url)) if url else None
        self._retry_at_s = 0.0

    async def spend(self, key: Key, rate: RateLimitItem, ids: int) -> None:
        """Count ``ids`` of a request.

        Raises:
            ApiError: 429 with Retry-After when the key has used up its rate, 413 when one request is more than all of it.
        """
        if ids > rate.amount:
            message = f"{ids:,} ids in one request; key {key.name!r} may ask for {rate}, so split it"
            raise refusal(413, "too_many_ids", message)
        limiter = self._shared if self._shared and time.monotonic() >= self._retry_at_s else self._own
        try:
            wait_s = await _hit(limiter, key, rate, ids)
        except Exception as error:  # the client library's own kinds, and those of sockets
            if limiter is self._own:
                raise
            self._retry_at_s = time.monotonic() + RETRY_S
            log.warning("rates are counted in this process for %g s: Redis failed (%s)", RETRY_S, type(error).__name__)
            wait_s = await _hit(self._own, key, rate, ids)
        if wait_s is not None:
            message = f"key {key.name!r} may ask for {rate} ids; try again in {wait_s} s"
            raise refusal(429, "rate_limited", message, {"retry-after": str(wait_s)})


async def _hit(limiter: SlidingWindowCounterRateLimiter, key: Key, rate: RateLimitItem, ids: int) -> int | None:
    """None when there was room, else whole seconds to wait."""
    if not ids or await limiter.hit(rate, key.name, cost=ids):
        return None
    window = await limiter.get_window_stats(rate, key.name)
    return max(1, math.ceil(window.reset_time - time.time()))


def _redis(url: str) -> Storage:
    if url.split("://")[0] not in SCHEMES:
        raise InputError(
            f"rate_limit_url has the scheme {url.split('://')[0][:40]!r}; give one of {', '.join(SCHEMES)}"
        )
    options = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
    try:
        storage = storage_from_string("async+" + url, implementation="redispy", key_prefix="hfh", **options)
    except ConfigurationError as error:
        raise MissingDependencyError(f"counting rates in Redis needs a package ({error}); pip install redis") from None
    assert isinstance(storage, Storage)
    return storage
