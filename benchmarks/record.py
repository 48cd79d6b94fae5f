"""Rows of results: each with what made it, so that anyone can repeat it."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "Recorder"]

RESULTS = Path(__file__).parent / "results"


def _device() -> str:
    """The processor's name and the number of cores this process may use."""
    import os

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def _commit() -> str:
    """The commit, with a + where files differ from it."""
    git = ["git", "-C", str(RESULTS.parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if dirty else "")


class Recorder:
    """Writes the rows of one run, each as soon as it is known.

    The rows of earlier runs in the same file are replaced, or with ``resume`` kept and found again by :meth:`find`.
    """

    def __init__(self, name: str, resume: bool = False, folder: Path = RESULTS) -> None:
        self.path = folder / f"{name}.jsonl"
        self._about = {
            "command": shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
            "commit": _commit(),
            "device": _device(),
            "date": time.strftime("%Y-%m-%d"),
        }
        self.path.parent.mkdir(exist_ok=True)
        if not resume or not self.path.exists():
            self.path.write_text("")
        self._rows: list[dict[str, Any]] = [json.loads(line) for line in self.path.read_text().splitlines()]

    def row(self, **values: Any) -> dict[str, Any]:
        """Append one row."""
        row = values | self._about
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._rows.append(row)
        return row

    def find(self, **values: Any) -> list[dict[str, Any]]:
        """The rows that have these values."""
        return [row for row in self._rows if values.items() <= row.items()]

    def drop(self, **values: Any) -> None:
        """Remove the rows that have these values."""
        self._rows = [row for row in self._rows if not values.items() <= row.items()]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
