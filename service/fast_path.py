"""Lookups as plain ASGI, dispatched before the framework: its routing and validation would cost more than the rows.

    POST /v1/tables/{table}/lookup    POST /v1/tables/{table}/bag    POST /v1/lookup

Everything else goes on to the application. ``service/openapi.py`` documents these routes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import InputError
from service import wire
from service.catalog import Served
from service.errors import ApiError, bad_request
from service.exchange import header, read_body, send, send_error
from service.fast_lane import find_route
from service.pinning import catalog_of, named, parameters
from service.state import State
from service.wire import BINARY, Output

__all__ = ["FastPath", "Question", "key_ids"]

MODES = ("sum", "mean", "max")
Answer = tuple[bytes | memoryview, list[tuple[bytes, bytes]]]
Rows = npt.NDArray[Any]
log = logging.getLogger("hfh.service")


class Question(NamedTuple):
    """What one request asks of one table. ``bag`` has the arguments of a bag, None asks for rows."""

    name: str
    served: Served
    ids: npt.NDArray[np.int64]
    output: Output
    bag: dict[str, Any] | None


class FastPath:
    """An ASGI application around another one. :class:`~service.fast_lane.Lane` answers simple requests without ASGI."""

    def __init__(self, app: Callable[..., Awaitable[None]], state: State) -> None:
        self._app, self.state = app, state

    async def __call__(self, scope: dict[str, Any], receive: Any, send_message: Any) -> None:
        found = find_route(scope["path"]) if scope["type"] == "http" else None
        if found is None:
            return await self._app(scope, receive, send_message)
        if scope["method"] != "POST":
            message = f"{scope['method']} is not allowed here; use POST"
            return await send_error(send_message, ApiError(405, "method_not_allowed", message, {"allow": "POST"}))
        return await self._exchange(*found, scope, receive, send_message)

    async def _exchange(self, route: str, name: str, scope: dict[str, Any], receive: Any, send_message: Any) -> None:
        settings, status = self.state.settings, 200
        began = time.perf_counter()
        try:
            body = await read_body(scope, receive, settings.max_body_bytes, settings.body_timeout_s)
            began = time.perf_counter()
            media = wire.media_type(header(scope, b"content-type"))
            output = wire.negotiate(header(scope, b"accept"), media)
            if route == "tables":
                answer, extra = await self._several(media, body, scope, output)
            else:
                answer, extra = await self._one(route, name, media, body, scope, output)
            self.state.metrics.tally.took(route, time.perf_counter() - began)
            await send(send_message, 200, answer, output.media, *extra)
        except ApiError as error:
            status = error.status
            await send_error(send_message, error)
        except asyncio.CancelledError:  # its deadline passed, or the process stops without waiting longer
            status = 504
            raise
        except Exception:
            status = 500
            log.exception("lookup failed")
            message = "the service failed at this request; its log has the details"
            await send_error(send_message, ApiError(500, "internal", message))
        finally:
            self.state.metrics.tally.answered(route, status)

    async def _one(
        self, route: str, name: str, media: str, body: bytes, scope: dict[str, Any], output: Output
    ) -> Answer:
        served = named(await catalog_of(self.state, scope), name)
        asked = self.question(served, route, name, media, body, scope["query_string"], output)
        return self.answer(asked, await self._compute(asked))

    def question(
        self, served: Served, route: str, name: str, media: str, body: bytes, query: bytes, output: Output
    ) -> Question:
        """A request for one table, checked; ApiError where it is not a valid one."""
        most = self.state.settings.max_ids
        if media != BINARY:
            document = wire.decode(media, body)
        else:
            values = wire.integers(body, "the body", None)
            if route == "lookup":
                if len(values) > most:
                    raise wire.too_many(len(values), most)
                if b"raw" in query:
                    served = _raw(served, _flag(parameters(query).get("raw", "false")))
                return Question(name, served, values, output, None)
            document = _binary_bag(values, query)
        return self._question(name, served, document, output, most, bag=route == "bag")

    def answer(self, asked: Question, rows: Rows) -> Answer:
        """The body and the headers that describe it."""
        version = asked.served.version
        if asked.output.media == BINARY:
            return rows.reshape(-1).view(np.uint8).data, [
                (b"x-hfh-shape", b"%d,%d" % rows.shape),
                (b"x-hfh-dtype", asked.output.dtype.encode()),
                (b"x-hfh-version", version.encode()),
            ]
        answer = {"table": asked.name, "version": version, "embeddings": rows}
        return wire.encode_document(asked.output, answer), [(b"x-hfh-version", version.encode())]

    async def _several(self, media: str, body: bytes, scope: dict[str, Any], output: Output) -> Answer:
        if BINARY in (media, output.media):
            raise ApiError(
                415, "unsupported_media_type", "several tables need JSON or msgpack, for the question and the answer"
            )
        asked = wire.decode(media, body).get("tables")
        if not isinstance(asked, dict) or not asked:
            raise wire.invalid('give {"tables": {name: {"ids": [...]}, ...}} with at least one table')
        catalog = await catalog_of(self.state, scope)  # once: all rows are from one state of it
        served = {str(name): named(catalog, str(name)) for name in asked}
        left, answers = self.state.settings.max_ids, {}
        for name, document in asked.items():
            if not isinstance(document, dict):
                raise wire.invalid(f"what is asked of table {str(name)[:80]!r} is not an object with ids or keys")
            bag = "offsets" in document
            question = self._question(str(name), served[name], document, output, left, bag=bag)
            left -= len(question.ids)
            answers[name] = {"version": served[name].version, "embeddings": await self._compute(question)}
        return wire.encode_document(output, {"tables": answers}), []

    def _question(
        self, name: str, served: Served, document: dict[str, Any], output: Output, most: int, bag: bool
    ) -> Question:
        """What one object asks for."""
        known = {"ids", "keys"}
        known |= {"offsets", "mode", "per_sample_weights", "include_last_offset"} if bag else {"raw"}
        if unknown := document.keys() - known:
            raise wire.invalid(f"field {sorted(unknown)[0][:40]!r} is not known; known are {', '.join(sorted(known))}")
        if ("ids" in document) == ("keys" in document):
            raise wire.invalid("give either ids or keys")
        if "keys" in document:
            ids = key_ids(served, document["keys"], most)
        else:
            ids = document["ids"]
            if not isinstance(ids, np.ndarray):
                ids = wire.integers(ids, "ids", most)
            elif len(ids) > most:
                raise wire.too_many(len(ids), most)
        if "raw" in document:
            served = _raw(served, document["raw"])
        return Question(name, served, ids, output, _bag_arguments(document) if bag else None)

    async def _compute(self, asked: Question) -> Rows:
        """The rows that a question asks for."""
        reconstructor, dtype = self.state.reconstructor, wire.DTYPES[asked.output.dtype]
        try:
            if asked.bag is None:
                return await reconstructor.lookup(asked.served, asked.ids, dtype)
            return await reconstructor.bag(asked.served, asked.ids, dtype, **asked.bag)
        except InputError as error:
            raise wire.invalid(str(error)) from None


def _raw(served: Served, wanted: Any) -> Served:
    """What answers a request that says whether it wants raw rows; 422 where the table has none."""
    if not isinstance(wanted, bool):
        raise wire.invalid("raw must be true or false")
    try:
        return served.raw() if wanted else served
    except InputError as error:
        raise wire.invalid(str(error)) from None


def _flag(text: str) -> bool | None:
    return {"true": True, "1": True, "false": False, "0": False}.get(text)


def key_ids(served: Served, keys: Any, most: int) -> npt.NDArray[np.int64]:
    """The ids of string keys as they came in a request, (n,) int64; 422 or 413 where they are not usable."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise wire.invalid("keys must be a list of strings")
    if len(keys) > most:
        raise wire.too_many(len(keys), most)
    try:
        return served.table.ids_of(keys)
    except InputError as error:
        raise wire.invalid(str(error)) from None


def _bag_arguments(document: dict[str, Any]) -> dict[str, Any]:
    mode, last = document.get("mode", "mean"), document.get("include_last_offset", False)
    if mode not in MODES:
        raise wire.invalid(f"mode is {str(mode)[:40]!r}; allowed are {', '.join(MODES)}")
    if not isinstance(last, bool):
        raise wire.invalid("include_last_offset must be true or false")
    if "offsets" not in document:
        raise wire.invalid("bags need offsets, the position of each bag's first id")
    offsets = document["offsets"]
    arguments = {
        "offsets": offsets if isinstance(offsets, np.ndarray) else wire.integers(offsets, "offsets"),
        "mode": mode,
        "include_last_offset": last,
    }
    if document.get("per_sample_weights") is not None:
        arguments["per_sample_weights"] = wire.numbers(document["per_sample_weights"], "per_sample_weights")
    return arguments


def _binary_bag(values: npt.NDArray[np.int64], query: bytes) -> dict[str, Any]:
    """A binary bag request: the number of bags, the offset of each, then the ids; ``?mode=`` in the URL."""
    if not len(values) or not 0 <= values[0] <= len(values) - 1:
        raise bad_request("a binary bag request is int64: the number of bags, the offset of each, then the ids")
    bags = int(values[0])
    given = parameters(query)
    if unknown := given.keys() - {"mode", "version"}:
        raise wire.invalid(f"parameter {sorted(unknown)[0][:40]!r} is not known; a binary bag takes mode and version")
    return {"offsets": values[1 : 1 + bags], "ids": values[1 + bags :], "mode": given.get("mode", "mean")}
