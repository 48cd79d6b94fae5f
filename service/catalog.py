"""Which tables are served: those of one or more snapshots, by name."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import hfh_embed
from hfh_embed.errors import InputError
from service.cache import RowCache

__all__ = ["Catalog", "Served"]


@dataclass(frozen=True)
class Served:
    """One served table with the snapshot it belongs to."""

    table: hfh_embed.Table
    snapshot: hfh_embed.Snapshot

    @property
    def version(self) -> str:
        """The snapshot's version."""
        return self.snapshot.version

    def lookup(
        self, ids: npt.NDArray[np.int64], dtype: npt.DTypeLike, cache: RowCache | None = None
    ) -> npt.NDArray[Any]:
        """The served rows of ids (n,), (n, D), the table's own from its ``cache``; raises as :meth:`hfh_embed.Table.lookup`."""
        return (cache or self.table).lookup(ids, dtype=dtype)

    def bag(self, ids: npt.NDArray[np.int64], dtype: npt.DTypeLike, **arguments: Any) -> npt.NDArray[Any]:
        """The served bags of ids; arguments and errors of :meth:`hfh_embed.Table.bag`."""
        return self.table.bag(ids, dtype=dtype, **arguments)

    def fill(self, ids: npt.NDArray[np.int64], out: npt.NDArray[np.float32]) -> None:
        """Write the served rows of ids (n,) into out (n, D); raises as :meth:`lookup`."""
        self.table.lookup(ids, out=out)

    def describe(self) -> dict[str, object]:
        """What ``/v1/tables`` says about it."""
        spec = self.table.spec
        return {
            "name": spec.name,
            "num_embeddings": spec.num_embeddings,
            "embedding_dim": spec.embedding_dim,
            "unknown": spec.unknown.value,
            "keys": "vocabulary" if self.table.vocabulary is not None else "hash",
            "version": self.version,
            "nbytes": self.table.nbytes,
            "snapshot_nbytes": self.snapshot.nbytes,
            "snapshot_ratio": round(self.snapshot.ratio, 4),
        }


class Catalog(Mapping[str, Served]):
    """The served tables. Immutable: a request that takes the catalog once never mixes two states."""

    def __init__(self, tables: Mapping[str, Served]) -> None:
        self._tables = dict(tables)

    def __getitem__(self, name: str) -> Served:
        return self._tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def replacing(self, name: str, served: Served | None) -> Catalog:
        """A catalog where ``name`` is served by another, or by none."""
        other = copy.copy(self)
        other._tables = {key: value for key, value in self._tables.items() if key != name}
        if served is not None:
            other._tables[name] = served
        return other

    @classmethod
    def load(cls, paths: Iterable[Path]) -> Catalog:
        """Open snapshots and folders of ``*.hfh``; one row of each table is looked up, so that the first request is not slow.

        Raises:
            InputError: nothing to serve, or two snapshots have a table of one name.
            SnapshotError, OSError: a file cannot be opened.
        """
        files: list[Path] = []
        for path in paths:
            found = sorted(path.glob("*.hfh")) if path.is_dir() else [path]
            if not found:
                raise InputError(f"folder {path} holds no snapshot (*.hfh); make one with `hfh compress`")
            files += found
        if not files:
            raise InputError("no snapshot to serve; give a file or a folder")
        tables: dict[str, Served] = {}
        for file in files:
            snapshot = hfh_embed.open(file)
            for name, table in snapshot.items():
                if name in tables:
                    other = tables[name].snapshot.path
                    raise InputError(
                        f"{file} and {other} both have a table {name!r}; serve one of them, or rename a table"
                    )
                table.lookup(np.zeros(1, dtype=np.int64))
                tables[name] = Served(table, snapshot)
        return cls(tables)
