"""Where every protocol gets its rows: admission by ids, and the choice of the thread that computes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from service.calls import CALL
from service.catalog import Served
from service.limits import InFlight
from service.metrics import Metrics

__all__ = ["Reconstructor"]

Ids = npt.NDArray[np.int64]
Rows = npt.NDArray[Any]


class Reconstructor:
    """Rows and bags of served tables, bounded by the ids that are being answered."""

    def __init__(self, in_flight: InFlight, metrics: Metrics, thread_ids: int) -> None:
        self._in_flight, self._metrics, self._thread_ids = in_flight, metrics, thread_ids

    async def lookup(self, served: Served, ids: Ids, dtype: npt.DTypeLike = np.float32) -> Rows:
        """The rows of ids (n,), (n, D).

        Raises:
            ApiError: 429 when too many ids are being answered or the key asked for too many; 504 past the deadline.
            InputError, UnknownIdError: as :meth:`hfh_embed.Table.lookup`.
        """
        return await self._run(served, ids, partial(served.lookup, ids, dtype))

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
        self._metrics.ids.labels(served.table.name).inc(len(ids))
        self._metrics.request_ids.observe(len(ids))
        return rows
