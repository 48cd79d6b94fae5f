"""Where every protocol gets its rows: admission by ids, and the choice of the thread that computes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

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

    def at_once(self, served: Served, ids: Ids, dtype: npt.DTypeLike, bag: dict[str, Any] | None) -> Rows | None:
        """The rows, or with ``bag`` arguments the bags, of ids where nothing has to be waited for, else None.

        Raises as :meth:`lookup`.
        """
        if len(ids) > self._thread_ids:
            return None
        with self._in_flight.take(len(ids)):
            rows = served.lookup(ids, dtype) if bag is None else served.bag(ids, dtype, **bag)
        self._metrics.tally.looked_up(served.table.name, len(ids))
        return rows

    async def lookup(self, served: Served, ids: Ids, dtype: npt.DTypeLike = np.float32) -> Rows:
        """The rows of ids (n,), (n, D).

        Raises:
            ApiError: 429 when too many ids are being answered.
            InputError, UnknownIdError: as :meth:`hfh_embed.Table.lookup`.
        """
        return await self._run(served, ids, partial(served.lookup, ids, dtype))

    async def bag(self, served: Served, ids: Ids, dtype: npt.DTypeLike = np.float32, **arguments: Any) -> Rows:
        """One row for each bag, (bags, D); arguments of :meth:`hfh_embed.Table.bag`, raises as :meth:`lookup`."""
        return await self._run(served, ids, partial(served.bag, ids, dtype, **arguments))

    async def _run(self, served: Served, ids: Ids, call: Callable[[], Rows]) -> Rows:
        with self._in_flight.take(len(ids)):
            if len(ids) <= self._thread_ids:
                rows = call()
            else:  # long kernel calls leave the event loop
                rows = await asyncio.get_running_loop().run_in_executor(None, call)
        self._metrics.tally.looked_up(served.table.name, len(ids))
        return rows
