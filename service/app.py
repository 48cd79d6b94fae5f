"""The application: wires routes, errors and the fast path together, and decides nothing."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

import hfh_embed
from service import logs, tracing
from service.allocator import give_back_large_buffers
from service.configuration import WORKER_VARIABLE
from service.errors import ApiError, error_body_for
from service.fast_lane import Lane
from service.fast_path import FastPath
from service.guard import Guard
from service.openapi import document
from service.openapi_protocols import describe
from service.protocols import Protocols
from service.routes import console, health, overlay, row, search, snapshots, tables
from service.settings import Settings
from service.state import State

__all__ = ["create_app", "from_environment"]

TYPES = {404: "not_found", 405: "method_not_allowed"}
log = logging.getLogger("hfh.service")


def create_app(state: State) -> Guard:
    """The ASGI application over an already loaded state."""
    app = FastAPIOffline(  # /docs with its scripts from here, not from a public network
        title="HFH embedding service",
        version=hfh_embed.__version__,
        description="Rows of compressed embedding tables.",
        redoc_url=None,
        lifespan=lambda _: state.running(),
    )
    app.state.hfh = state
    app.include_router(health.router)
    app.include_router(tables.router)
    app.include_router(console.router)
    app.include_router(overlay.router)
    app.include_router(row.router)
    app.include_router(search.router)
    app.include_router(snapshots.router)
    app.openapi = partial(document, app, describe)  # type: ignore[method-assign]
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _failure)
    path = FastPath(Protocols(app, state), state)
    return Guard(tracing.traced(path, state.settings), state, Lane(path))


def from_environment() -> Guard:
    """The application of a worker process, with the settings that its parent left in the environment."""
    settings = Settings.model_validate_json(os.environ[WORKER_VARIABLE])
    logs.configure(settings.log_level, settings.access_log)
    give_back_large_buffers()
    return create_app(State.load(settings, first=False))


def _answer(request: Request, status: int, type_: str, message: str, headers: dict[str, str] | None = None) -> Response:
    body = error_body_for(request.url.path, status, type_, message)
    return Response(body, status, headers, "application/json")


async def _api_error(request: Request, error: Any) -> Response:
    return _answer(request, error.status, error.type, error.message, error.headers)


async def _http_error(request: Request, error: Any) -> Response:
    message = {404: f"nothing is at {request.url.path[:200]}; see /docs", 405: f"{request.method} is not allowed here"}
    text = message.get(error.status_code, str(error.detail))
    type_ = TYPES.get(error.status_code, "http_error")
    return _answer(request, error.status_code, type_, text, dict(error.headers or {}))


async def _validation_error(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    return _answer(request, 422, "invalid_value", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


async def _failure(request: Request, error: Exception) -> Response:
    log.error("request failed", exc_info=error)
    return _answer(request, 500, "internal", "the service failed at this request; its log has the details")
