"""Lookups as plain ASGI, dispatched before the framework: its routing and validation would cost more than the rows.

    POST /v1/tables/{table}/lookup    POST /v1/tables/{table}/bag    POST /v1/lookup

Everything else goes on to the application. ``service/openapi.py`` documents these routes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import InputError
from service import wire
from service.catalog import Served
from service.errors import ApiError, bad_request
from service.exchange import header, read_body, send, send_error
from service.state import State
from service.wire import BINARY, Output

__all__ = ["FastPath"]

PREFIX = "/v1/tables/"
ROUTES = ("lookup", "bag")
MODES = ("sum", "mean", "max")
Answer = tuple[bytes | memoryview, list[tuple[bytes, bytes]]]
Rows = npt.NDArray[Any]
log = logging.getLogger("hfh.service")


class FastPath:
    """An ASGI application around another one."""

    def __init__(self, app: Callable[..., Awaitable[None]], state: State) -> None:
        self._app, self._state = app, state
        every = (*ROUTES, "tables")
        self._answered = {route: state.metrics.requests.labels(route, "200") for route in every}
        self._latency = {route: state.metrics.latency.labels(route) for route in every}

    async def __call__(self, scope: dict[str, Any], receive: Any, send_message: Any) -> None:
        found = _route(scope["path"]) if scope["type"] == "http" else None
        if found is None:
            return await self._app(scope, receive, send_message)
        if scope["method"] != "POST":
            message = f"{scope['method']} is not allowed here; use POST"
            return await send_error(send_message, ApiError(405, "method_not_allowed", message, {"allow": "POST"}))
        return await self._exchange(*found, scope, receive, send_message)

    async def _exchange(self, route: str, name: str, scope: dict[str, Any], receive: Any, send_message: Any) -> None:
        settings, status = self._state.settings, 200
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
            self._latency[route].observe(time.perf_counter() - began)
            if self._state.overlay.stale:
                extra.append((b"x-hfh-overlay", b"stale"))
            await send(send_message, 200, answer, output.media, *extra)
        except ApiError as error:
            status = error.status
            await send_error(send_message, error)
        except Exception:
            status = 500
            log.exception("lookup failed")
            message = "the service failed at this request; its log has the details"
            await send_error(send_message, ApiError(500, "internal", message))
        finally:
            if status == 200:
                self._answered[route].inc()
            else:
                self._state.metrics.requests.labels(route, str(status)).inc()

    async def _one(
        self, route: str, name: str, media: str, body: bytes, scope: dict[str, Any], output: Output
    ) -> Answer:
        served = _table(await self._catalog(scope), name)
        most = self._state.settings.max_ids
        if media == BINARY:
            values = wire.integers(body, "the body", None)
            if route == "lookup":
                document: dict[str, Any] = {"ids": values}
            else:
                document = _binary_bag(values, scope["query_string"])
        else:
            document = wire.decode(media, body)
        rows, _ = await self._rows(served, document, output, most, bag=route == "bag")
        if output.media == BINARY:
            return rows.reshape(-1).view(np.uint8).data, [
                (b"x-hfh-shape", ",".join(map(str, rows.shape)).encode()),
                (b"x-hfh-dtype", output.dtype.encode()),
                (b"x-hfh-version", served.version.encode()),
            ]
        answer = {"table": name, "version": served.version, "embeddings": rows}
        return wire.encode_document(output, answer), [(b"x-hfh-version", served.version.encode())]

    async def _several(self, media: str, body: bytes, scope: dict[str, Any], output: Output) -> Answer:
        if BINARY in (media, output.media):
            raise ApiError(
                415, "unsupported_media_type", "several tables need JSON or msgpack, for the question and the answer"
            )
        asked = wire.decode(media, body).get("tables")
        if not isinstance(asked, dict) or not asked:
            raise wire.invalid('give {"tables": {name: {"ids": [...]}, ...}} with at least one table')
        catalog = await self._catalog(scope)  # once: all rows are from one state of it
        served = {str(name): _table(catalog, str(name)) for name in asked}
        left, answers = self._state.settings.max_ids, {}
        for name, document in asked.items():
            if not isinstance(document, dict):
                raise wire.invalid(f"what is asked of table {str(name)[:80]!r} is not an object with ids or keys")
            bag = "offsets" in document
            rows, count = await self._rows(served[name], document, output, left, bag=bag)
            left -= count
            answers[name] = {"version": served[name].version, "embeddings": rows}
        return wire.encode_document(output, {"tables": answers}), []

    async def _catalog(self, scope: dict[str, Any]) -> Mapping[str, Served]:
        """The tables to answer from: the active ones, or those of the version that the request pins."""
        version = header(scope, b"x-hfh-version") or _query(scope["query_string"]).get("version", "").encode()
        if not version:
            return self._state.catalog
        return await self._state.pinned(version.decode("latin-1"))

    async def _rows(
        self, served: Served, document: dict[str, Any], output: Output, most: int, bag: bool
    ) -> tuple[Rows, int]:
        """The rows that one object asks for, and how many ids that took."""
        known = {"ids", "keys"} | ({"offsets", "mode", "per_sample_weights", "include_last_offset"} if bag else set())
        if unknown := document.keys() - known:
            raise wire.invalid(f"field {sorted(unknown)[0][:40]!r} is not known; known are {', '.join(sorted(known))}")
        if ("ids" in document) == ("keys" in document):
            raise wire.invalid("give either ids or keys")
        try:
            if "keys" in document:
                ids = self._key_ids(served, document["keys"], most)
            else:
                ids = document["ids"]
                if not isinstance(ids, np.ndarray):
                    ids = wire.integers(ids, "ids", most)
                elif len(ids) > most:
                    raise wire.too_many(len(ids), most)
            arguments = _bag_arguments(document) if bag else {}
            compute = self._state.reconstructor.bag if bag else self._state.reconstructor.lookup
            rows = await compute(served, ids, wire.DTYPES[output.dtype], **arguments)
        except InputError as error:
            raise wire.invalid(str(error)) from None
        return rows, len(ids)

    def _key_ids(self, served: Served, keys: Any, most: int) -> npt.NDArray[np.int64]:
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise wire.invalid("keys must be a list of strings")
        if len(keys) > most:
            raise wire.too_many(len(keys), most)
        return served.table.ids_of(keys)


def _route(path: str) -> tuple[str, str] | None:
    """The lookup route that a path names, and its table."""
    if path == "/v1/lookup":
        return "tables", ""
    if path.startswith(PREFIX):
        name, slash, route = path[len(PREFIX) :].rpartition("/")
        if slash and route in ROUTES:
            return route, name
    return None


def _table(catalog: Mapping[str, Served], name: str) -> Served:
    served = catalog.get(name)
    if served is None:
        there = ", ".join(list(catalog)[:20])
        raise ApiError(404, "table_not_found", f"no table is named {name[:80]!r}; there are {there}")
    return served


def _query(text: bytes) -> dict[str, str]:
    return {} if not text else dict(part.partition("=")[::2] for part in text.decode("latin-1").split("&") if part)


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
    given = _query(query)
    if unknown := given.keys() - {"mode", "version"}:
        raise wire.invalid(f"parameter {sorted(unknown)[0][:40]!r} is not known; a binary bag takes mode and version")
    return {"offsets": values[1 : 1 + bags], "ids": values[1 + bags :], "mode": given.get("mode", "mean")}
