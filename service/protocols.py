"""Protocols that others defined, dispatched by their paths before the framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from service.routes.inference import Inference
from service.routes.openai import OpenAI
from service.state import State

__all__ = ["Protocols"]


class Protocols:
    """An ASGI application around another one."""

    def __init__(self, app: Callable[..., Awaitable[None]], state: State) -> None:
        self._app, self._inference, self._openai = app, Inference(state), OpenAI(state)

    async def __call__(self, scope: dict[str, Any], receive: Any, send_message: Any) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path == "/v2" or path.startswith("/v2/"):
            return await self._inference(scope, receive, send_message)
        if path in ("/v1/embeddings", "/v1/models") or path.startswith("/v1/models/"):
            return await self._openai(scope, receive, send_message)
        return await self._app(scope, receive, send_message)
