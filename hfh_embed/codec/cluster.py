"""Chunks of a table worked on by Ray: on this machine, or on all machines of a cluster that runs.

The fit is made here, as ever; then a Ray Data set of chunk numbers is mapped by tasks that read their rows from the input themselves
(memory-mapped and Arrow files, which must have the same path everywhere) or out of Ray's object store (arrays in memory). A
task computes what one process would, so the bytes are the same on processors of one kind.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any, TypeVar

from hfh_embed.codec.encoding import Encoder
from hfh_embed.codec.survey import Chunk
from hfh_embed.errors import HFHError, InputError, MissingDependencyError

__all__ = ["Cluster"]

T = TypeVar("T")
LOCAL = "local"
CONNECT_S = 5.0
NO_STATISTICS = {"RAY_USAGE_STATS_ENABLED": "0"}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray listens on 127.0.0.1 alone where this is off, on other systems too; it is read when ray is imported."""


class Cluster:
    """A runner for `compress`, within a ``with`` block: ``compress(rows, ratio=20, run=cluster)``."""

    def __init__(self, address: str = LOCAL, workers: int | None = None) -> None:
        """
        Args:
            address: "local" starts a Ray of this machine's processors on 127.0.0.1, which ends with the block; "auto" or HOST:PORT
                joins one that runs. Where the process has joined one before, that is used.
            workers: processors of a "local" Ray; by default all that this process may use.

        Raises:
            MissingDependencyError: Ray Data is not installed.
        """
        os.environ.update(NO_STATISTICS | (LOOPBACK if address == LOCAL else {}))
        try:
            import ray
            import ray.data
        except ImportError:
            raise MissingDependencyError(
                "working on a cluster needs Ray Data; install it with: pip install 'hfh-embed[ray]'"
            ) from None
        self._ray: Any = ray
        self.address, self.workers = address, workers
        self._mine = False

    def __enter__(self) -> Cluster:
        if self._ray.is_initialized():
            return self
        options: dict[str, Any] = (
            {"include_dashboard": False, "num_cpus": self.workers} if self.address == LOCAL else {}
        )
        try:
            if ":" in self.address:  # Ray itself would go on trying for minutes
                host, _, port = self.address.rpartition(":")
                socket.create_connection((host, int(port)), CONNECT_S).close()
            self._ray.init(self.address, log_to_driver=False, logging_level="ERROR", **options)
        except Exception as error:  # Ray raises many kinds, also RuntimeError and ConnectionError
            raise InputError(
                f"no Ray was found at {self.address!r} ({str(error).strip().splitlines()[0][:160]}); "
                "give 'local', 'auto', or HOST:PORT of a cluster that runs"
            ) from None
        self._mine = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mine:
            self._ray.shutdown()
            self._mine = False

    def __call__(self, do: Callable[[Chunk], T], chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, T]]:
        """``do`` with every chunk, on the workers; results come as they are finished.

        Raises:
            HFHError: what ``do`` raised.
            InputError: a task failed.
        """
        if not chunks:
            return
        ray = self._ray
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        _quiet()
        numbers = {chunk.number: chunk for chunk in chunks}
        work = ray.put(_one_thread(do))

        def found(row: dict[str, Any]) -> dict[str, Any]:
            return _found(work, row)

        rows = [chunk._asdict() for chunk in chunks]
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(found, num_cpus=1)
        try:
            for row in data.iter_rows():
                if isinstance(row["found"], HFHError):
                    raise row["found"]
                yield numbers[int(row["number"])], row["found"]
        except ray.exceptions.RayError as error:
            raise _failed(str(error)) from None


def _found(work: Any, row: dict[str, Any]) -> dict[str, Any]:
    """In a process of the cluster: what becomes of a chunk."""
    chunk = Chunk(int(row["number"]), int(row["start"]), int(row["stop"]))
    try:
        return {"number": chunk.number, "found": _kept(work)(chunk)}
    except HFHError as error:  # as a result, because Ray would turn an exception into its own
        return {"number": chunk.number, "found": error}
    except Exception as error:
        return {"number": chunk.number, "found": _failed(f"{type(error).__name__}: {error}")}


@lru_cache(maxsize=1)
def _kept(work: Any) -> Callable[[Chunk], Any]:
    """A fit and an opened input serve all chunks of a process."""
    import ray

    do: Callable[[Chunk], Any] = ray.get(work)
    return do


def _one_thread(do: Callable[[Chunk], Any]) -> Callable[[Chunk], Any]:
    """A task has one processor: there are as many tasks as processors."""
    if isinstance(do, Encoder):
        return dataclasses.replace(do, fit=do.fit.with_threads(1))
    return do


def _quiet() -> None:
    """Ray Data logs every execution; what goes wrong is raised here."""
    import logging

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _failed(reason: str) -> InputError:
    lines = [line.strip() for line in reason.splitlines() if line.strip()] or ["it ended"]
    return InputError(
        f"a task of the cluster failed ({lines[0][:200]}); the input must have the same path on every machine, "
        "and hfh-embed be installed there"
    )
