"""The application: wires routes, errors and the fast path together, and decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import hfh_embed
from service.errors import ApiError, error_body
from service.fast_path import FastPath
from service.openapi import document
from service.routes import health, overlay, snapshots, tables
from service.settings import Settings
from service.state import State

__all__ = ["create_app", "from_environment"]

TYPES = {404: "not_found", 405: "method_not_allowed"}
log = logging.getLogger("hfh.service")


def create_app(state: State) -> Callable[..., Awaitable[None]]:
    """The ASGI application over an already loaded state."""
    app = FastAPI(
        title="HFH embedding service",
        version=hfh_embed.__version__,
        description="Rows of compressed embedding tables.",
        redoc_url=None,
        lifespan=lambda _: state.running(),
    )
    app.state.hfh = state
    app.include_router(health.router)
    app.include_router(tables.router)
    app.include_router(overlay.router)
    app.include_router(snapshots.router)
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _failure)
    return FastPath(app, state)


def from_environment() -> Callable[..., Awaitable[None]]:
    """The application of a worker process, with its settings from the environment."""
    return create_app(State.load(Settings(), first=False))


def _answer(status: int, type_: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(error_body(status, type_, message), status, headers, "application/json")


async def _api_error(_: Request, error: Any) -> Response:
    return _answer(error.status, error.type, error.message, error.headers)


async def _http_error(request: Request, error: Any) -> Response:
    message = {404: f"nothing is at {request.url.path[:200]}; see /docs", 405: f"{request.method} is not allowed here"}
    text = message.get(error.status_code, str(error.detail))
    return _answer(error.status_code, TYPES.get(error.status_code, "http_error"), text, dict(error.headers or {}))


async def _validation_error(_: Request, error: Any) -> Response:
    first = error.errors()[0]
    return _answer(422, "invalid_value", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


async def _failure(_: Request, error: Exception) -> Response:
    log.error("request failed", exc_info=error)
    return _answer(500, "internal", "the service failed at this request; its log has the details")
