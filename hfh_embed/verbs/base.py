"""What all verbs share: their shape, how they print and how they show progress."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hfh_embed.errors import HFHError

__all__ = ["CheckFailedError", "Progress", "Verb", "bytes_text", "print_json", "print_table", "whole_number"]

_SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


class CheckFailedError(HFHError):
    """A check that the user asked for did not hold: exit code 1."""


@dataclass(frozen=True)
class Verb:
    """One verb: a line of help, its arguments, and what it does (returning an exit code, or None for 0)."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


def print_json(document: object) -> None:
    """One JSON document on stdout; numbers that JSON lacks become null."""
    print(json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns on stdout, text to the left and numbers to the right."""
    cells = [tuple(header), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    right = [
        len(cells) > 1 and all(re.match(r"[-\d.—]", line[column]) for line in cells[1:])
        for column in range(len(header))
    ]
    for line in cells:
        padded = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True))
        print("  ".join(padded).rstrip())


def bytes_text(count: float) -> str:
    """``1234567`` as ``1.23 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:,.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError


def whole_number(text: str) -> int:
    """An argument such as ``30522``, ``200k``, ``1.5M`` or ``1B``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmbg]?)", text.strip().lower().replace("_", "").replace(",", ""))
    number = float(match[1]) * _SUFFIX[match[2]] if match else -1.0
    if number < 1 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; give one such as 30522, 200k, 1.5M or 1B")
    return int(number)


class Progress:
    """A bar on stderr, only on a terminal and only for what takes longer than a second."""

    def __init__(self) -> None:
        self._shown = False
        self._began = self._last = time.monotonic()
        self._what = ""

    def __call__(self, done: int, total: int, what: str = "") -> None:
        """Report that ``done`` of ``total`` steps of ``what`` are finished."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began = what, now
        finished = done >= total
        if (
            not sys.stderr.isatty()
            or (now - self._last < 0.1 and not finished)
            or (now - self._began < 1 and not self._shown)
        ):
            return
        self._last, self._shown = now, True
        share = done / total if total else 1.0
        left = (now - self._began) * (1 - share) / share if share else 0.0
        bar = "█" * int(24 * share)
        print(f"\r{what:<24} {bar:<24} {share:4.0%} {left:5.0f} s left", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the bar."""
        if self._shown:
            print("\r" + " " * 72 + "\r", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
