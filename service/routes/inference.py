"""The Open Inference Protocol, version 2 (KServe, Triton), as plain ASGI under ``/v2``.

A table is a model. Inputs: ``ids`` INT64 or ``keys`` BYTES of any shape; with ``offsets`` INT64 they are bags (request
parameters ``mode`` and ``include_last_offset``, input ``per_sample_weights`` FP32). Outputs: ``embeddings`` FP32, and
``embeddings_fp16``, binary only. Errors are the protocol's: ``{"error": message}``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

import hfh_embed
from hfh_embed.errors import InputError
from service import tensors, wire
from service.catalog import Served
from service.errors import ApiError, bad_request
from service.exchange import header, read_body, send_error
from service.pinning import catalog_of
from service.repository import Repository
from service.state import State

__all__ = ["Inference"]

Scope = dict[str, Any]
Answer = tuple[list[bytes | memoryview], list[tuple[bytes, bytes]]]
JSON, BINARY = wire.JSON, wire.BINARY
EXTENSIONS = ["binary_tensor_data", "model_repository"]
JOINED_BYTES = 65_536  # up to here one write of a copy is cheaper than two writes
log = logging.getLogger("hfh.service")


class Inference:
    """The ASGI application of every path under ``/v2``."""

    def __init__(self, state: State) -> None:
        self._state, self._repository = state, Repository(state)
        self._routes: dict[tuple[str, ...], tuple[str, Callable[..., Awaitable[Answer]]]] = {
            (): ("GET", self._server),
            ("health", "live"): ("GET", self._live),
            ("health", "ready"): ("GET", self._ready),
            ("models", "*"): ("GET", self._model),
            ("models", "*", "ready"): ("GET", self._model_ready),
            ("models", "*", "infer"): ("POST", self._infer),
            ("repository", "index"): ("POST", self._index),
            ("repository", "models", "*", "load"): ("POST", self._load),
            ("repository", "models", "*", "unload"): ("POST", self._unload),
        }

    async def __call__(self, scope: Scope, receive: Any, send_message: Any) -> None:
        try:
            method, handler, names = self._route(scope["path"])
            if scope["method"] != method:
                message = f"{scope['method']} is not allowed here; use {method}"
                raise ApiError(405, "method_not_allowed", message, {"allow": method})
            await _write(send_message, *await handler(*names, scope, receive))
        except ApiError as error:
            if error.status == 422:
                error.status = 400  # the protocol knows no 422
            await send_error(send_message, error, scope["path"])
        except Exception:
            log.exception("inference request failed")
            failure = ApiError(500, "internal", "the service failed at this request; see its log")
            await send_error(send_message, failure, scope["path"])

    def _route(self, path: str) -> tuple[str, Callable[..., Awaitable[Answer]], list[str | None]]:
        """What a path asks for: the method, the handler, and the model and version that it names."""
        parts = path.split("/")[2:]
        names: list[str | None] = []
        place = 2 if parts[:2] == ["repository", "models"] else 1
        if parts[:1] == ["models"] or place == 2:
            names = list(parts[place : place + 1])
            parts[place : place + 1] = ["*"] * len(names)
        if parts[:1] == ["models"]:
            version = parts[3] if parts[2:3] == ["versions"] and len(parts) > 3 else None
            if version is not None:
                del parts[2:4]
            names.append(version)
        found = self._routes.get(tuple(parts))
        if found is None:
            raise ApiError(404, "not_found", f"nothing is at {path[:200]}; see /docs")
        return *found, names

    async def _served(self, name: str, version: str | None, scope: Scope) -> Served:
        """The model, of the version in the path, or as any other request may pin one."""
        state = self._state
        served = (await catalog_of(state, scope) if version is None else await state.pinned(version)).get(name)
        if served is None:
            raise ApiError(404, "table_not_found", f"no model is named {name[:80]!r}; see /v1/tables")
        return served

    async def _server(self, scope: Scope, receive: Any) -> Answer:
        return _json({"name": "hfh", "version": hfh_embed.__version__, "extensions": EXTENSIONS})

    async def _live(self, scope: Scope, receive: Any) -> Answer:
        return _json({"live": True})

    async def _ready(self, scope: Scope, receive: Any) -> Answer:
        if not self._state.ready:
            raise ApiError(503, "not_ready", "the service is stopping")
        return _json({"ready": True})

    async def _model(self, name: str, version: str | None, scope: Scope, receive: Any) -> Answer:
        served = await self._served(name, version, scope)
        dim = served.table.embedding_dim
        return _json(
            {
                "name": name,
                "versions": [served.version],
                "platform": "hfh",
                "inputs": [
                    {"name": input_, "datatype": datatype, "shape": [-1]} for input_, datatype in tensors.INPUTS.items()
                ],
                "outputs": [
                    {"name": output, "datatype": datatype, "shape": [-1, dim]}
                    for output, datatype in tensors.OUTPUTS.items()
                ],
            }
        )

    async def _model_ready(self, name: str, version: str | None, scope: Scope, receive: Any) -> Answer:
        await self._served(name, version, scope)
        return _json({"name": name, "ready": True})

    async def _infer(self, name: str, version: str | None, scope: Scope, receive: Any) -> Answer:
        settings = self._state.settings
        with self._state.metrics.measured("infer") as clock:
            served = await self._served(name, version, scope)
            if header(scope, b"content-encoding") not in (b"", b"identity"):
                message = "compressed bodies are not supported; send them plain"
                raise ApiError(415, "unsupported_media_type", message, {"connection": "close"})
            body = await read_body(scope, receive, settings.max_body_bytes, settings.body_timeout_s)
            clock.restart()
            asked = tensors.question(body, header(scope, b"inference-header-content-length"), settings.max_ids)
            head, binary = tensors.answer(asked, name, served.version, await self._rows(served, asked))
        extra = [(b"x-hfh-version", served.version.encode())]
        if binary:
            extra.append((b"inference-header-content-length", b"%d" % len(head)))
        return [head, *binary], extra

    async def _rows(self, served: Served, asked: tensors.Question) -> Any:
        dtype = tensors.ROWS["FP16" if asked.half else "FP32"]
        try:
            ids = asked.ids if asked.ids is not None else served.table.ids_of(asked.keys or [])
            if asked.bag is None:
                return await self._state.reconstructor.lookup(served, ids, dtype)
            return await self._state.reconstructor.bag(served, ids, dtype, **asked.bag)
        except InputError as error:
            raise bad_request(str(error)) from None

    async def _index(self, scope: Scope, receive: Any) -> Answer:
        only_ready = (await self._parameters(scope, receive, {"ready"})).get("ready", False)
        models = [
            {"name": name, "version": served.version, "state": "READY", "reason": ""}
            for name, served in self._state.catalog.items()
        ]
        if not only_ready:
            models += [
                {"name": name, "version": served.version, "state": "UNAVAILABLE", "reason": "unloaded"}
                for name, served in self._repository.unloaded().items()
            ]
        return _json(models)

    async def _load(self, name: str, scope: Scope, receive: Any) -> Answer:
        await self._parameters(scope, receive, {"parameters"}, set())
        self._repository.load(name)
        return [b""], []

    async def _unload(self, name: str, scope: Scope, receive: Any) -> Answer:
        await self._parameters(scope, receive, {"parameters"}, {"unload_dependents"})
        self._repository.unload(name)
        return [b""], []

    async def _parameters(
        self, scope: Scope, receive: Any, fields: set[str], parameters: set[str] | None = None
    ) -> dict[str, Any]:
        """A repository request's body, empty or an object with no other than these fields and parameters."""
        settings = self._state.settings
        body = await read_body(scope, receive, settings.max_body_bytes, settings.body_timeout_s)
        document = wire.decode(JSON, body) if body else {}
        inner = document.get("parameters", {})
        if not isinstance(inner, dict):
            raise bad_request("parameters must be an object")
        if unknown := (document.keys() - fields) | (inner.keys() - (parameters or set())):
            raise bad_request(f"{sorted(unknown)[0][:40]!r} is not supported here")
        if not isinstance(document.get("ready", False), bool):
            raise bad_request("ready must be true or false")
        return document


def _json(document: Any) -> Answer:
    return [orjson.dumps(document)], []


async def _write(send_message: Any, parts: list[bytes | memoryview], extra: list[tuple[bytes, bytes]]) -> None:
    media = JSON if len(parts) == 1 else BINARY
    size = sum(map(len, parts))
    if size <= JOINED_BYTES:
        parts = [b"".join(parts)]
    headers = [(b"content-type", media.encode()), (b"content-length", b"%d" % size), *extra]
    await send_message({"type": "http.response.start", "status": 200, "headers": headers})
    for number, part in enumerate(parts):
        await send_message({"type": "http.response.body", "body": part, "more_body": number < len(parts) - 1})
