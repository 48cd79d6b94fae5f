"""What a process does once a second beside answering: looking at connections, gauges, the keys file; and how it stops."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from hfh_embed.errors import HFHError
from service.auth import Keyring
from service.metrics import FOLDER
from service.state import State

__all__ = ["Housekeeping"]

PERIOD_S, KEYS_PERIODS, MEMORY_PERIODS = 1.0, 5, 10
log = logging.getLogger("hfh.service")


class Housekeeping:
    """Runs while the block runs: ``async with Housekeeping(state):``."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._keys_changed = _changed(state.settings.keys_file)
        self._task: asyncio.Task[None] | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.getsignal(number)  # the server's own, which stops accepting
                if callable(self._handlers[number]):
                    signal.signal(number, self._stop)

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
        self._state.metrics.tally.move()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Not ready from now on; after the delay the server stops accepting, finishes and ends. Twice, or Ctrl-C: at once."""
        first, self._state.ready = self._state.ready, False
        delay_s = self._state.settings.drain_delay_s
        proceed = self._handlers[signal.Signals(number)]
        if first and delay_s and number == signal.SIGTERM:
            self._loop.call_soon_threadsafe(self._loop.call_later, delay_s, proceed, number, None)
        else:
            proceed(number, frame)

    async def _run(self) -> None:
        loop, periods = self._loop, 0
        while True:
            asleep_s = loop.time()
            await asyncio.sleep(PERIOD_S)
            periods += 1
            try:
                self._state.metrics.lag.set(max(0.0, loop.time() - asleep_s - PERIOD_S))
                for connection in list(self._state.connections.open):
                    connection.look(loop.time())
                self._state.measure()
                self._state.metrics.tally.move()
                if periods % MEMORY_PERIODS == 0 and FOLDER in os.environ:  # a scrape reaches one worker only
                    self._state.metrics.measure_memory()
                if periods % KEYS_PERIODS == 0:
                    self._reload_keys()
            except Exception:
                log.exception("housekeeping failed; it goes on")

    def _reload_keys(self) -> None:
        file = self._state.settings.keys_file
        changed = _changed(file)
        if file is None or changed == self._keys_changed:
            return
        self._keys_changed = changed
        try:
            self._state.keys = Keyring.load(file)
            log.warning("keys were read again: %d from %s", len(self._state.keys), file)
        except (HFHError, OSError) as error:
            log.error("the known keys stay: %s", error)


def _changed(file: Path | None) -> tuple[int, int, int] | None:
    """What tells that a file is another than before."""
    try:
        stat = file.stat() if file is not None else None
    except OSError:
        return None
    return None if stat is None else (stat.st_mtime_ns, stat.st_size, stat.st_ino)
