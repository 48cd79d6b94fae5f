"""Waiting for what must become true."""

import time
from collections.abc import Callable


def until(holds: Callable[[], bool], what: str, most_s: float = 15.0) -> float:
    """Seconds until it held; fails when it does not within ``most_s``."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < most_s, f"not within {most_s:g} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - began
