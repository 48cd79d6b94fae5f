"""The snapshot files that may be served: which there are, what their headers say, which of them may replace which."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import hfh_embed
from hfh_embed.errors import SnapshotError
from hfh_embed.spec import TableSpec, Unknown

__all__ = ["Known", "Library", "incompatibilities"]


@dataclass(frozen=True)
class Known:
    """A snapshot file as it was found. ``info`` is None, and ``refused`` the reason, where it cannot be served.

    ``given`` is true for a file that was named, false for one found in a folder; ``stamp`` changes with the file.
    """

    path: Path
    stamp: tuple[int, ...]
    given: bool
    info: hfh_embed.SnapshotInfo | None
    refused: str = ""
    verified: bool = False

    @property
    def version(self) -> str:
        """The version, empty if the header cannot be read."""
        return self.info.version if self.info is not None else ""

    @property
    def tables(self) -> tuple[TableSpec, ...]:
        """Its tables."""
        return self.info.spec.tables if self.info is not None else ()


class Library:
    """The files that paths name. Files are looked at again only when they changed, and by their header alone."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._files: dict[Path, Known] = {}

    def scan(self) -> None:
        """Look what is there. Names that begin with a dot, and those of files that are being written, are left alone."""
        found: dict[Path, Known] = {}
        for path in sorted(self.paths, key=Path.is_dir):  # a file that is named also goes before its folder
            given = not path.is_dir()
            for file in [path] if given else sorted(path.glob("*.hfh")):
                if file not in found and (given or not file.name.startswith(".")):
                    known = self._look(file, given)
                    if known is not None:
                        found[file] = known
        self._files = found

    def _look(self, file: Path, given: bool) -> Known | None:
        try:
            stamp = _stamp(file)
        except OSError:
            return None  # removed while we looked
        known = self._files.get(file)
        if known is not None and known.stamp == stamp:
            return known
        try:
            return Known(file, stamp, given, hfh_embed.inspect(file))
        except (SnapshotError, OSError) as error:
            return Known(file, stamp, given, None, str(error))

    def __iter__(self) -> Iterator[Known]:
        """Every file, those given first, then the newest first."""
        return iter(sorted(self._files.values(), key=lambda known: (not known.given, -known.stamp[0], known.path.name)))

    def find(self, version: str) -> Known | None:
        """The file of a version, preferably one that is not refused."""
        found = [known for known in self if known.version == version]
        return min(found, key=lambda known: bool(known.refused), default=None)

    def refuse(self, known: Known, reason: str) -> None:
        """Remember why a file is not served, until it changes."""
        self._files[known.path] = replace(known, refused=reason)

    def verify(self, known: Known) -> None:
        """Compare every checksum, once for each state of a file; what does not match is refused from then on.

        Raises:
            SnapshotError: the file is damaged, or changed while it was read.
            OSError: it cannot be read.
        """
        if known.verified:
            return
        try:
            hfh_embed.verify(known.path)
        except SnapshotError as error:
            self.refuse(known, str(error))
            raise
        if _stamp(known.path) != known.stamp:
            raise SnapshotError(f"{known.path} changed while it was read; try again")
        self._files[known.path] = replace(known, verified=True)


def _stamp(file: Path) -> tuple[int, ...]:
    found = os.stat(file)
    return found.st_mtime_ns, found.st_size, found.st_ino


def incompatibilities(old: Mapping[str, hfh_embed.Table], new: Mapping[str, hfh_embed.Table]) -> list[str]:
    """What clients of the old tables would miss in the new ones, a sentence each."""
    found = []
    for name, table in old.items():
        other = new.get(name)
        if other is None:
            found.append(f"it has no table {name!r}")
        elif other.embedding_dim != table.embedding_dim:
            found.append(f"rows of table {name!r} have {other.embedding_dim} entries instead of {table.embedding_dim}")
        elif other.unknown is not Unknown.RECONSTRUCT and other.num_embeddings < table.num_embeddings:
            found.append(f"table {name!r} has {other.num_embeddings:,} ids instead of {table.num_embeddings:,}")
        elif other.unknown is Unknown.ERROR and table.unknown is not Unknown.ERROR:
            found.append(f"table {name!r} refuses unknown ids instead of answering them")
        elif (other.vocabulary is None) != (table.vocabulary is None):
            found.append(f"string keys of table {name!r} would become other ids")
    return found
