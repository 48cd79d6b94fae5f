"""Embeddings as OpenAI's API has them: ``POST /v1/embeddings``, ``GET /v1/models``. A table is a model.

A string is a key and an integer an id, one embedding each. A list of lists of ids gives one embedding for each inner list, the
mean of its rows: what a client sends that turns texts into tokens itself.
"""

from __future__ import annotations

import base64
import itertools
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from hfh_embed.errors import InputError
from service import wire
from service.catalog import Served
from service.errors import ApiError
from service.exchange import read_body, send, send_error
from service.pinning import catalog_of
from service.state import State

__all__ = ["OpenAI"]

Scope = dict[str, Any]
FIELDS = {"model", "input", "encoding_format", "dimensions", "user"}
FORMATS = ("float", "base64")
log = logging.getLogger("hfh.service")


class OpenAI:
    """The ASGI application of ``/v1/embeddings`` and ``/v1/models``."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Any, send_message: Any) -> None:
        path, method = scope["path"], scope["method"]
        wanted = "POST" if path == "/v1/embeddings" else "GET"
        try:
            if method != wanted:
                message = f"{method} is not allowed here; use {wanted}"
                raise ApiError(405, "method_not_allowed", message, {"allow": wanted})
            if wanted == "POST":
                body, version = await self._embeddings(scope, receive)
                return await send(send_message, 200, body, wire.JSON, (b"x-hfh-version", version.encode()))
            name = path.removeprefix("/v1/models").removeprefix("/")
            await send(send_message, 200, orjson.dumps(self._model(name) if name else self._models()), wire.JSON)
        except ApiError as error:
            await send_error(send_message, error, path)
        except Exception:
            log.exception("embeddings request failed")
            failure = ApiError(500, "internal", "the service failed at this request; see its log")
            await send_error(send_message, failure, path)

    def _models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._model(name) for name in self._state.catalog]}

    def _model(self, name: str) -> dict[str, Any]:
        path = _served(self._state.catalog, name).snapshot.path
        created = int(path.stat().st_mtime) if path is not None and path.exists() else 0
        return {"id": name, "object": "model", "created": created, "owned_by": "hfh"}

    async def _embeddings(self, scope: Scope, receive: Any) -> tuple[bytes, str]:
        settings = self._state.settings
        with self._state.metrics.measured("embeddings") as clock:
            body = await read_body(scope, receive, settings.max_body_bytes, settings.body_timeout_s)
            clock.restart()
            decoded = wire.decode(wire.JSON, body)
            request = {name: value for name, value in decoded.items() if value is not None}
            if unknown := request.keys() - FIELDS:
                raise wire.invalid(f"field {sorted(unknown)[0][:40]!r} is not supported; known are {', '.join(FIELDS)}")
            if not isinstance(model := request.get("model"), str):
                raise wire.invalid("model must be the name of a table")
            served = _served(await catalog_of(self._state, scope), model)
            encoding = _options(request, served)
            rows, used = await self._rows(served, request.get("input"))
            return _answer(model, rows, used, encoding), served.version

    async def _rows(self, served: Served, given: Any) -> tuple[npt.NDArray[Any], int]:
        """One row for each input, and how many ids that took."""
        items = [given] if isinstance(given, str | int) and not isinstance(given, bool) else given
        if not isinstance(items, list) or not items:
            raise wire.invalid(
                "input must be a string, an integer, or a list of them, not empty; or a list of lists of ids"
            )
        reconstructor, most = self._state.reconstructor, self._state.settings.max_ids
        try:
            if isinstance(items[0], list):
                ids, offsets = _bags(items, most)
                return await reconstructor.bag(served, ids, np.float32, offsets=offsets, mode="mean"), len(ids)
            if isinstance(items[0], str):
                if not all(isinstance(item, str) for item in items):
                    raise wire.invalid("input mixes strings with others; send strings only, or ids only")
                if len(items) > most:
                    raise wire.too_many(len(items), most)
                ids = served.table.ids_of(items)
            else:
                ids = wire.integers(items, "input", most)
            return await reconstructor.lookup(served, ids, np.float32), len(ids)
        except InputError as error:
            raise wire.invalid(str(error)) from None


def _served(catalog: Mapping[str, Served], name: str) -> Served:
    served = catalog.get(name)
    if served is None:
        raise ApiError(
            404, "model_not_found", f"no model is named {name[:80]!r}; there are {', '.join([*catalog][:20])}"
        )
    return served


def _options(request: dict[str, Any], served: Served) -> str:
    """Check what does not choose rows; returns the encoding."""
    encoding, dim = request.get("encoding_format", "float"), served.table.embedding_dim
    if encoding not in FORMATS:
        raise wire.invalid(f"encoding_format is {str(encoding)[:40]!r}; allowed are {', '.join(FORMATS)}")
    dimensions = request.get("dimensions", dim)
    if type(dimensions) is not int or dimensions != dim:
        raise wire.invalid(
            f"dimensions is {str(dimensions)[:40]}; this model has {dim}, and a part of a row means nothing"
        )
    if not isinstance(request.get("user", ""), str):
        raise wire.invalid("user must be a string")
    return str(encoding)


def _bags(items: list[Any], most: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    if not all(isinstance(item, list) and item for item in items):
        raise wire.invalid("input mixes lists with others, or has an empty list; each inner list needs at least one id")
    lengths = [len(item) for item in items]
    if sum(lengths) > most:
        raise wire.too_many(sum(lengths), most)
    return wire.integers(list(itertools.chain.from_iterable(items)), "input"), np.cumsum([0, *lengths[:-1]])


def _answer(model: str, rows: npt.NDArray[Any], used: int, encoding: str) -> bytes:
    little = np.ascontiguousarray(rows, dtype="<f4")
    data = [
        {"object": "embedding", "index": number, "embedding": row if encoding == "float" else _base64(row)}
        for number, row in enumerate(little)
    ]
    usage = {"prompt_tokens": used, "total_tokens": used}
    document = {"object": "list", "data": data, "model": model, "usage": usage}
    return wire.json_text(document)


def _base64(row: npt.NDArray[Any]) -> str:
    return base64.b64encode(row.data).decode()
