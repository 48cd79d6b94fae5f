"""The overlay in Redis: every replica has all rows in its own memory and follows what the others write.

Lookups never wait for Redis. A task reads what changed whenever a write wakes it, and at least twice a second; while it
fails, the rows of before are served as stale and writes are refused at once. ``hfh_embed/redis_rows.py`` has the layout.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import MissingDependencyError
from hfh_embed.redis_rows import BATCH_ROWS, Keys, Target, every_client, pack_rows, unpack_rows
from service.errors import ApiError
from service.fresh_rows import FreshRows
from service.overlay import Overlay, check_room
from service.overlay_scripts import DROP, MERGE, PUT

__all__ = ["RedisOverlay"]

Ids = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
WAIT_MS = 500
FIRST_DELAY_S, LAST_DELAY_S = 0.05, 0.5
START_S = 10.0
REMOVED_IDS = 100_000
log = logging.getLogger("hfh.service")


class RedisOverlay(Overlay):
    """Fresh rows shared by all processes that name the same Redis and prefix; raises MissingDependencyError without the client."""

    store = "redis"

    def __init__(self, target: Target, prefix: str, max_rows: int, max_bytes: int, timeout_s: float) -> None:
        super().__init__(max_rows, max_bytes)
        try:
            import redis.asyncio as library
        except ImportError:
            raise MissingDependencyError(
                "an overlay in Redis needs redis; install it with: pip install 'hfh-embed[redis]'"
            ) from None
        self._library, self._target, self._keys, self._timeout_s = library, target, Keys(prefix), timeout_s
        self._client: Any = None
        self._reader: Any = None
        self._errors = (library.RedisError, OSError, TimeoutError)
        self._refusal = library.ResponseError
        self.stale = True
        self._synchronised_at = time.monotonic()
        self._incarnation: bytes | None = None
        self._seen = 0
        self._cursors: dict[str, int] = {}
        self._woken_by: bytes | str = "0"
        self._lock = asyncio.Lock()
        self._attempted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def age_s(self) -> float:
        """Seconds since this process last knew that it has every row."""
        return time.monotonic() - self._synchronised_at

    async def start(self) -> None:
        """Fetch what there is, then follow. A Redis that does not answer delays the start by at most a few seconds."""
        self._client = self._connect(self._timeout_s, retries=2)
        self._reader = self._connect(self._timeout_s + WAIT_MS / 1000, retries=0)
        self._task = asyncio.create_task(self._follow())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._attempted.wait(), START_S)

    def _connect(self, timeout_s: float, retries: int) -> Any:
        from redis.asyncio.retry import Retry
        from redis.backoff import ExponentialBackoff

        retry = Retry(ExponentialBackoff(cap=0.1, base=0.01), retries)
        times = {"socket_timeout": timeout_s, "socket_connect_timeout": self._timeout_s}
        return self._target.connect(self._library, asynchronous=True, retry=retry, **times)

    async def close(self) -> None:
        """Stop following and let go of the connections."""
        if self._task is None:
            return
        self._closing = True
        self._task.cancel()
        await asyncio.wait([self._task])
        for client in (*every_client(self._client), *every_client(self._reader)):
            with contextlib.suppress(*self._errors):
                await client.aclose()

    async def put(self, table: str, ids: Ids, rows: F32) -> int:
        """See :meth:`Overlay.put`."""
        packed = rows.astype("<f4").tobytes()
        async with self._writing():
            answer = await self._run(PUT, table, rows.shape[1], self.max_rows, self.max_bytes, _text(ids), packed)
            if answer[0] == b"full":
                check_room(int(answer[1]), int(answer[2]), self.max_rows, self.max_bytes)
            sequence = int(answer[1])
            self._incarnation = self._incarnation or answer[2]
            self._seen = max(self._seen, sequence)  # a Redis that knows less has lost something
            self.fresh(table).put(ids, np.full(len(ids), sequence), rows)
        return sequence

    async def drop(self, table: str, ids: Ids | None = None, until: int | None = None) -> int:
        """See :meth:`Overlay.drop`."""
        async with self._writing():
            fresh = self.fresh(table)
            if ids is None and until is not None:
                have, sequences, _ = fresh.contents()
                ids = have[sequences <= until]
            last = 2**63 if until is None else until
            if ids is None:
                answer = await self._run(DROP, table, last, REMOVED_IDS, "all")
                fresh.drop()
                return int(answer[2])
            removed = 0
            for start in range(0, len(ids), BATCH_ROWS):
                part = ids[start : start + BATCH_ROWS]
                answer = await self._run(DROP, table, last, REMOVED_IDS, _text(part))
                removed += int(answer[2])
                fresh.drop(part, until)
            return removed

    @contextlib.asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        """The one writer of this process, within the timeout; 424 when Redis does not take the write."""
        if self.stale:
            raise self._gone("does not answer; rows are served as they were last known")
        try:
            async with asyncio.timeout(self._timeout_s), self._lock:
                yield
        except self._refusal as error:
            raise self._gone(f"refused the write ({error})") from None
        except self._errors as error:
            self._lost(error)
            raise self._gone(
                f"did not answer within {self._timeout_s:g} s; the write may or may not have been stored"
            ) from None

    def _gone(self, what: str) -> ApiError:
        return ApiError(424, "redis_gone", f"Redis ({self._target}) {what}; send the write again later")

    async def _run(self, script: str, table: str, *arguments: Any) -> Sequence[Any]:
        keys = (self._keys.meta, self._keys.log, self._keys.rows(table), self._keys.changed(table))
        answer: Sequence[Any] = await self._client.eval(script, len(keys), *keys, table, uuid.uuid4().hex, *arguments)
        return answer

    async def _follow(self) -> None:
        delay_s = FIRST_DELAY_S
        while not self._closing:  # the client may swallow a cancellation that meets an answer
            try:
                async with self._lock:
                    await self._synchronise()
                if self.stale and self._attempted.is_set():
                    log.warning("Redis (%s) answers; rows are fresh", self._target)
                self.stale, self._synchronised_at, delay_s = False, time.monotonic(), FIRST_DELAY_S
                self._attempted.set()
                await self._wait()
            except Exception as error:
                if not isinstance(error, self._errors):
                    log.exception("following Redis failed")
                self._lost(error)
                self._attempted.set()
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, LAST_DELAY_S)

    def _lost(self, error: BaseException) -> None:
        if not self.stale or not self._attempted.is_set():
            log.warning("Redis (%s) is gone (%s); rows are served as last known", self._target, error or "timeout")
        self.stale = True

    async def _wait(self) -> None:
        """Until a write, or half a second."""
        found = await self._reader.xread({self._keys.log: self._woken_by}, count=1, block=WAIT_MS)
        if found:
            entries = next(iter(found.values()))[0] if isinstance(found, dict) else found[0][1]
            self._woken_by = entries[0][0]

    async def _synchronise(self) -> None:
        """Have what Redis has, after giving it what it lost."""
        meta = await self._client.hgetall(self._keys.meta)
        known = self._incarnation
        if known is not None and (meta.get(b"incarnation") != known or _number(meta, "sequence") < self._seen):
            await self._give_back()
            self._cursors.clear()
            meta = await self._client.hgetall(self._keys.meta)
        sequence = _number(meta, "sequence")
        for name, fresh in self.tables:
            if _number(meta, f"sequence:{name}") > self._cursors.get(name, 0):
                await self._fetch(name, fresh, meta)
            elif name not in self._cursors:
                fresh.drop()
            self._cursors[name] = sequence
        self._incarnation, self._seen = meta.get(b"incarnation"), sequence

    async def _give_back(self) -> None:
        """Redis was flushed, or came back with older data: what it does not know better is stored again."""
        for name, fresh in self.tables:
            ids, sequences, rows = fresh.contents()
            for start in range(0, len(ids), BATCH_ROWS):
                part = slice(start, start + BATCH_ROWS)
                await self._run(MERGE, name, fresh.dim, _text(ids[part]), pack_rows(sequences[part], rows[part]))
            if len(ids):
                log.warning("Redis (%s) had lost rows; gave back %d of table %s", self._target, len(ids), name)

    async def _fetch(self, name: str, fresh: FreshRows, meta: dict[bytes, bytes]) -> None:
        """Read a table's rows: what changed since the last time, or all of them where that is not known."""
        cursor, dim = self._cursors.get(name, 0), _number(meta, f"dim:{name}")
        if not cursor or cursor < _number(meta, f"floor:{name}"):
            fresh.load(*await self._all_rows(name, dim))
            return
        changed = await self._client.zrangebyscore(self._keys.changed(name), f"({cursor}", "+inf")
        for start in range(0, len(changed), BATCH_ROWS):
            part = changed[start : start + BATCH_ROWS]
            values = await self._client.hmget(self._keys.rows(name), part)
            found, sequences, rows = unpack_rows(part, values, dim)
            if len(found):
                fresh.put(found, sequences, rows)
            fresh.drop(np.setdiff1d(np.array([int(id_) for id_ in part], dtype=np.int64), found))

    async def _all_rows(self, name: str, dim: int) -> tuple[Ids, Ids, F32]:
        parts, place = [], 0
        while True:
            place, page = await self._client.hscan(self._keys.rows(name), place, count=BATCH_ROWS)
            parts.append(unpack_rows(list(page), list(page.values()), dim))
            if not place:
                break
        ids, sequences, rows = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        ids, first = np.unique(ids, return_index=True)  # a scan may tell one twice
        return ids, sequences[first], rows[first]


def _text(ids: Ids) -> str:
    """Ids as the scripts read them: Lua's numbers would round those from 2**53 on."""
    return " ".join(map(str, ids.tolist()))


def _number(meta: dict[bytes, bytes], name: str) -> int:
    return int(float(meta.get(name.encode(), 0)))
