"""uvicorn's server, telling the state when it is asked to stop."""

from __future__ import annotations

from types import FrameType

import uvicorn

from service.state import State

__all__ = ["Server"]


class Server(uvicorn.Server):
    """Turns ``/readyz`` to 503 before it drains."""

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self._state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._state.ready = False
        super().handle_exit(sig, frame)
