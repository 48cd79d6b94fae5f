"""Which versions are active, written down: the file that all workers follow and that outlives a restart."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hfh_embed.container import replacing

__all__ = ["Choice", "ChoiceFile"]

NAME = ".hfh-active.json"
PREFIX = "hfh-active-"
MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Choice:
    """Active versions, those that were active before, and every version that was known when this was decided."""

    active: tuple[str, ...] = ()
    previous: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()


class ChoiceFile:
    """Reads and replaces the file, which need not exist yet. ``path`` is None where one process keeps the choice to itself.

    ``durable`` says whether the choice outlives a restart of the service.
    """

    def __init__(
        self, path: Path | None, durable: bool, folder: tempfile.TemporaryDirectory[str] | None = None
    ) -> None:
        self.path, self.durable, self._folder = path, durable, folder
        self._stamp: tuple[int, ...] | None = None

    @classmethod
    def place(cls, given: str, paths: Sequence[Path], workers: int) -> ChoiceFile:
        """Where it is: as given, else in the first served folder that may be written, else, for workers, a temporary folder."""
        if given:  # by the user, or to a worker by the process that made the temporary folder
            return cls(Path(given), not Path(given).parent.name.startswith(PREFIX))
        for path in paths:
            if path.is_dir() and os.access(path, os.W_OK):
                return cls(path / NAME, True)
        if workers == 1:
            return cls(None, False)
        folder = tempfile.TemporaryDirectory(prefix=PREFIX)
        return cls(Path(folder.name) / NAME, False, folder)

    def close(self) -> None:
        """Remove the temporary folder, if there is one."""
        if self._folder is not None:
            self._folder.cleanup()

    def read(self) -> Choice | None:
        """The choice, None if none was written down or the file is not one of ours."""
        if self.path is None:
            return None
        try:
            self._stamp = self._now()
            with open(self.path, "rb") as file:
                document = json.loads(file.read(MAX_BYTES))
            fields = {name: tuple(map(str, document[name])) for name in ("active", "previous", "seen")}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Choice(**fields)

    def changed(self) -> bool:
        """Whether the file is another one than was read or written last. Costs one system call."""
        return self.path is not None and self._now() != self._stamp

    def write(self, choice: Choice) -> None:
        """Replace the file; OSError when it cannot be written."""
        if self.path is not None:
            with replacing(self.path) as file:
                file.write(json.dumps(asdict(choice)).encode())
            self._stamp = self._now()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time decides."""
        if self.path is None:
            yield
            return
        handle = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _now(self) -> tuple[int, ...] | None:
        try:
            assert self.path is not None
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size
