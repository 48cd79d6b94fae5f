"""Searches off the event loop: a bounded number at once, each stopped when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from hfh_embed.search import Metric, nearest
from service.calls import refusal
from service.catalog import Served

__all__ = ["Found", "Searcher"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """For each query, nearest first: ids and scores (Q, k), and keys where the table has a vocabulary."""

    ids: Ids
    scores: npt.NDArray[np.float32]
    keys: list[list[str]] | None


class Searcher:
    """The searches of one process, one thread each; it sets the process's BLAS to one thread."""

    def __init__(self, most: int) -> None:
        self.most, self.now = most, 0
        # Matrix products of a tile are too short to share: threads that wait for each other on busy cores made them 50 times slower.
        threadpool_limits(1, user_api="blas")
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="hfh-search")

    async def search(
        self,
        served: Served,
        queries: npt.NDArray[np.float32],
        k: int,
        metric: Metric,
        own: Ids | None,
        gone: Callable[[], Awaitable[Any]],
    ) -> Found:
        """The k nearest rows of each query (Q, D); with ``own`` (Q,) a query's own id is left out.

        It is abandoned when ``gone()`` returns, or when the task is cancelled.

        Raises:
            ApiError: 429 when as many searches run as may, 499 when it was abandoned.
        """
        if self.now >= self.most:
            message = f"{self.now} searches are running and at most {self.most} may; try again"
            raise refusal(429, "over_capacity", message, {"retry-after": "1"})
        stop = threading.Event()
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, _search, served, queries, k, metric, own, stop.is_set
        )
        self.now += 1
        work.add_done_callback(self._ended)
        waiting = asyncio.ensure_future(gone())
        try:
            await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise refusal(499, "client_gone", "the client went away before its search was done")
            return work.result()
        finally:
            stop.set()
            waiting.cancel()

    def _ended(self, work: asyncio.Future[Found]) -> None:
        self.now -= 1
        if not work.cancelled():
            work.exception()  # of an abandoned search: nobody else looks at it


def _search(
    served: Served,
    queries: npt.NDArray[np.float32],
    k: int,
    metric: Metric,
    own: Ids | None,
    stop: Callable[[], bool],
) -> Found:
    table = served.table
    ids, scores = nearest(
        served.fill,
        table.num_embeddings,
        queries,
        k if own is None else k + 1,
        metric,
        without=table.spec.padding_id,
        stop=stop,
    )
    if own is not None:
        ids, scores = _without(ids, scores, own, k)
    keys = None
    if (vocabulary := table.vocabulary) is not None:
        keys = [[vocabulary.key(id_) if id_ >= 0 else "" for id_ in row.tolist()] for row in ids]
    return Found(ids, scores, keys)


def _without(ids: Ids, scores: npt.NDArray[np.float32], own: Ids, k: int) -> tuple[Ids, npt.NDArray[np.float32]]:
    """Each query's k best but its own id, all of one length."""
    kept = [np.flatnonzero(row != self_)[:k] for row, self_ in zip(ids, own, strict=True)]
    most = min(map(len, kept), default=0)
    places = np.array([row[:most] for row in kept], dtype=np.intp).reshape(len(ids), most)
    return np.take_along_axis(ids, places, axis=1), np.take_along_axis(scores, places, axis=1)
