"""Where every protocol gets its rows: admission by ids, batches, and the choice of the thread that computes them.

A batch is what waits for rows of one table when the event loop has read every socket: one kernel call answers it, and nothing waits
while the loop is idle. It pays for tables whose kernel call costs much however few ids it has, which is measured once for each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

import hfh_embed
from hfh_embed.errors import InputError
from service.cache import RowCache
from service.calls import CALL, Call
from service.catalog import Served
from service.cost import call_s
from service.errors import ApiError
from service.limits import InFlight
from service.metrics import Metrics
from service.settings import Settings

__all__ = ["Reconstructor"]

Ids = npt.NDArray[np.int64]
Rows = npt.NDArray[Any]
Done = Callable[[Rows | Exception], None]
Lookup = Callable[[Served, Ids, npt.DTypeLike], Rows]
_Asked = tuple[Ids, Done, Callable[[], None], Call | None]
DEAR_CALL_S = 50e-6
DEAR_ROWS, DEAR_ROWS_S = 64, 100e-6


class Reconstructor:
    """Rows and bags of served tables, bounded by the ids that are being answered."""

    def __init__(self, in_flight: InFlight, metrics: Metrics, settings: Settings) -> None:
        self._in_flight, self._metrics, self._thread_ids = in_flight, metrics, settings.thread_ids
        self._batching, self._wait_s = settings.batching, settings.max_wait_us / 1e6
        self._most = min(settings.max_batch_ids, settings.thread_ids)  # a batch does not leave the event loop
        self._cache_bytes = settings.cache_bytes
        self._caches: WeakKeyDictionary[hfh_embed.Table, RowCache | None] = WeakKeyDictionary()
        self._dear: WeakKeyDictionary[hfh_embed.Table, bool] = WeakKeyDictionary()
        self._waiting: dict[tuple[int, str], _Batch] = {}
        self._timer: asyncio.Handle | None = None

    def batches(self, served: Served, count: int) -> bool:
        """Whether a lookup of ``count`` ids waits for others: :meth:`enqueue` is then the way."""
        if self._batching == "off" or count > self._most:
            return False
        return self._batching == "on" or self._is_dear(served.table)

    def at_once(self, served: Served, ids: Ids, dtype: npt.DTypeLike, bag: dict[str, Any] | None) -> Rows | None:
        """The rows, or with ``bag`` arguments the bags, of ids where nothing has to be waited for, else None.

        Raises as :meth:`lookup`.
        """
        if len(ids) > self._thread_ids:
            return None
        with self._in_flight.take(len(ids)):
            rows = self._rows(served, ids, dtype) if bag is None else served.bag(ids, dtype, **bag)
        self._metrics.tally.looked_up(served.table.name, len(ids))
        return rows

    def enqueue(self, served: Served, ids: Ids, dtype: np.dtype[Any], done: Done) -> None:
        """Compute rows with the next batch, then call ``done`` with them or with an error of these ids alone.

        Raises:
            ApiError: as :meth:`lookup`.
        """
        key = id(served), dtype.str
        batch = self._waiting.get(key)
        if batch is None:
            batch = self._waiting[key] = _Batch(served, dtype)
        taken = self._in_flight.take(len(ids))
        taken.__enter__()
        batch.add(ids, done, partial(taken.__exit__, None, None, None), CALL.get())
        if batch.count >= self._most:
            self._answer(self._waiting.pop(key))
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._wait_s, self.flush) if self._wait_s else loop.call_soon(self.flush)

    def flush(self) -> None:
        """Answer everything that waits for a batch, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, {}
        for batch in waiting.values():
            self._answer(batch)

    async def lookup(self, served: Served, ids: Ids, dtype: npt.DTypeLike = np.float32) -> Rows:
        """The rows of ids (n,), (n, D).

        Raises:
            ApiError: 429 when too many ids are being answered or the key asked for too many; 504 past the deadline.
            InputError, UnknownIdError: as :meth:`hfh_embed.Table.lookup`.
        """
        if not self.batches(served, len(ids)):
            lookup = self._rows if len(ids) <= self._thread_ids else Served.lookup  # the cache is the event loop's
            return await self._run(served, ids, partial(lookup, served, ids, dtype))
        request = CALL.get()
        if request is not None:
            await request.spend(len(ids))
        future: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        self.enqueue(served, ids, np.dtype(dtype), partial(_settle, future))
        return await future

    async def bag(self, served: Served, ids: Ids, dtype: npt.DTypeLike = np.float32, **arguments: Any) -> Rows:
        """One row for each bag, (bags, D); arguments of :meth:`hfh_embed.Table.bag`, raises as :meth:`lookup`."""
        return await self._run(served, ids, partial(served.bag, ids, dtype, **arguments))

    async def _run(self, served: Served, ids: Ids, call: Callable[[], Rows]) -> Rows:
        request = CALL.get()
        if request is not None:
            await request.spend(len(ids))
        with self._in_flight.take(len(ids)):
            if len(ids) <= self._thread_ids:
                rows = call()
            else:  # long kernel calls leave the event loop
                if request is not None:
                    call = request.checked(call)
                rows = await asyncio.get_running_loop().run_in_executor(None, call)
        self._metrics.tally.looked_up(served.table.name, len(ids))
        return rows

    def _answer(self, batch: _Batch) -> None:
        batch.drop_unwanted()
        self._metrics.batch_ids.observe(batch.count)
        outcomes = batch.compute(self._rows)
        for (ids, done, release, _), outcome in zip(batch.asked, outcomes, strict=True):
            release()
            if not isinstance(outcome, Exception):
                self._metrics.tally.looked_up(batch.served.table.name, len(ids))
            done(outcome)

    def _rows(self, served: Served, ids: Ids, dtype: npt.DTypeLike) -> Rows:
        cache = self._cache(served.table) if self._cache_bytes else None
        if cache is None:
            return served.lookup(ids, dtype)
        hits, misses = cache.hits, cache.misses
        rows = served.lookup(ids, dtype, cache)
        self._metrics.tally.cached(served.table.name, cache.hits - hits, cache.misses - misses)
        return rows

    def _cache(self, table: hfh_embed.Table) -> RowCache | None:
        """The cache of a table whose rows are dear; each version of a table has its own."""
        try:
            return self._caches[table]
        except KeyError:
            dear = call_s(table, DEAR_ROWS) > DEAR_ROWS_S
            cache = self._caches[table] = RowCache(table, self._cache_bytes) if dear else None
            return cache

    def _is_dear(self, table: hfh_embed.Table) -> bool:
        found = self._dear.get(table)
        if found is None:
            found = self._dear[table] = call_s(table) > DEAR_CALL_S
        return found


class _Batch:
    """Lookups of one table that wait for each other."""

    def __init__(self, served: Served, dtype: np.dtype[Any]) -> None:
        self.served, self.dtype, self.count = served, dtype, 0
        self.asked: list[_Asked] = []

    def add(self, ids: Ids, done: Done, release: Callable[[], None], call: Call | None) -> None:
        self.asked.append((ids, done, release, call))
        self.count += len(ids)

    def drop_unwanted(self) -> None:
        """Refuse what was wanted until a deadline that has passed, or by a client that has gone."""
        wanted = []
        for asked in self.asked:
            ids, done, release, call = asked
            try:
                if call is not None:
                    call.check()
                wanted.append(asked)
            except ApiError as error:
                self.count -= len(ids)
                release()
                done(error)
        self.asked = wanted

    def compute(self, lookup: Lookup) -> list[Rows | Exception]:
        """What each gets. Where the whole fails each is computed alone, so that an id spoils no other's answer."""
        parts = [ids for ids, *_ in self.asked]
        if len(parts) > 1:
            try:
                rows = lookup(self.served, np.concatenate(parts), self.dtype)
            except InputError:
                pass
            except Exception as error:
                return [error] * len(parts)
            else:
                return list(np.split(rows, np.cumsum([len(ids) for ids in parts[:-1]])))
        return [self._alone(lookup, ids) for ids in parts]

    def _alone(self, lookup: Lookup, ids: Ids) -> Rows | Exception:
        try:
            return lookup(self.served, ids, self.dtype)
        except Exception as error:
            return error


def _settle(future: asyncio.Future[Rows], outcome: Rows | Exception) -> None:
    if future.done():
        return  # whoever asked is gone
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
