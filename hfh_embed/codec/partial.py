"""Encoded chunks in a folder beside the output, so that a run that was killed can go on.

``OUT.partial/`` holds ``lock``, and a folder for every fit of a run: an .npy file for each array, and a journal with the errors
of each finished chunk. A fit's folder is named by the digest of everything that the chunks depend on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from hfh_embed.codec.encoding import Errors
from hfh_embed.errors import InputError
from hfh_embed.layout import Array, ArraySpec

__all__ = ["Partial", "digest"]

MARK = "hfh compress keeps encoded chunks here until its output is whole. Remove the folder to begin anew.\n"
JOURNAL = "journal.npy"


def digest(identity: object, arrays: Mapping[str, Array]) -> str:
    """A name for what chunks depend on: plain values, and arrays."""
    found = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:32]


class Partial:
    """The folder of one output. Fits of other inputs or options that are found in it are removed."""

    def __init__(self, output: Path, identity: object, say: Callable[[str], None] = lambda text: None) -> None:
        """``identity`` is the input and the options as plain values; ``say`` is told when an earlier run goes on."""
        self.folder = output.with_name(output.name + ".partial")
        self.identity = digest(identity, {})
        self.say = say
        self.share = 0.0
        self._lock: int | None = None

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def store(self, specs: Mapping[str, ArraySpec], shared: Mapping[str, Array], chunks: int) -> OnDisk:
        """The arrays of one fit: those of an earlier run with the same input, options and fit, or new ones."""
        self._own()
        name = digest([self.identity, {key: [str(s.dtype), s.shape] for key, s in specs.items()}], shared)
        store = OnDisk(self, self.folder / f"{self.identity}-{name}", specs, chunks)
        if self.share:
            self.say(f"going on where an earlier run ended: {self.share:.0%} of the rows are encoded")
        return store

    def kept(self) -> str:
        """What a run that stops here leaves behind, in a sentence; nothing is empty."""
        if not self.share:
            self.remove()
            return ""
        return (
            f"{self.share:.0%} of the rows are encoded and kept in {str(self.folder)!r}: "
            "the same command goes on from there, and removing the folder gives the space back"
        )

    def remove(self) -> None:
        """Nothing is needed any more."""
        if self._lock is not None:
            shutil.rmtree(self.folder)

    def _own(self) -> None:
        """Lock the folder and throw away what other inputs or options left in it."""
        if self._lock is not None:
            return
        mark = self.folder / "README"
        if self.folder.exists() and not mark.is_file():
            raise InputError(
                f"{str(self.folder)!r} is in the way and not from an earlier run; move it or name another output"
            )
        self.folder.mkdir(exist_ok=True)
        mark.write_text(MARK)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = None
            raise InputError(
                f"another run is writing to {str(self.folder)!r}; wait for it or name another output"
            ) from None
        for old in self.folder.iterdir():
            if old.is_dir() and not old.name.startswith(self.identity):
                shutil.rmtree(old)


class OnDisk:
    """Arrays in files, written in place, and which chunks they hold."""

    def __init__(self, partial: Partial, folder: Path, specs: Mapping[str, ArraySpec], chunks: int) -> None:
        self.partial = partial
        if not (folder / JOURNAL).is_file():  # the journal comes last, so a folder without one is not complete
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name, spec in specs.items():
                np.lib.format.open_memmap(folder / f"{name}.npy", "w+", spec.dtype, spec.shape)
            np.save(folder / f"new-{JOURNAL}", np.full((chunks, len(Errors._fields)), np.nan))
            os.replace(folder / f"new-{JOURNAL}", folder / JOURNAL)
        self.arrays: dict[str, Array] = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", "r+") for name in specs
        }
        self.journal = np.lib.format.open_memmap(folder / JOURNAL, "r+")
        self._tell()

    def _tell(self) -> None:
        self.partial.share = float(np.isfinite(self.journal[:, -1]).mean())

    def found(self, number: int) -> Errors | None:
        """The errors of a chunk that was encoded before."""
        row = self.journal[number]
        return Errors(*row.tolist()) if np.isfinite(row).all() else None

    def record(self, number: int, errors: Errors) -> None:
        """The arrays now hold this chunk; they reach the disk before the journal says so."""
        for array in self.arrays.values():
            array.flush()  # type: ignore[attr-defined]
        self.journal[number] = errors
        self.journal.flush()
        self._tell()
