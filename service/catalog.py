"""Which tables are served, by name: those of the active snapshots, with rows fresher than them laid over."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import hfh_embed
from service.cache import RowCache
from service.fresh_rows import FreshRows

__all__ = ["Catalog", "RawServed", "Served"]


@dataclass(frozen=True)
class Served:
    """One served table with the snapshot it belongs to and the rows written since."""

    table: hfh_embed.Table
    snapshot: hfh_embed.Snapshot
    fresh: FreshRows = field(default_factory=FreshRows)

    @property
    def version(self) -> str:
        """The snapshot's version."""
        return self.snapshot.version

    def lookup(
        self, ids: npt.NDArray[np.int64], dtype: npt.DTypeLike, cache: RowCache | None = None
    ) -> npt.NDArray[Any]:
        """The served rows of ids (n,), (n, D), the table's own from its ``cache``; raises as :meth:`hfh_embed.Table.lookup`."""
        if self.fresh.count:
            return self.fresh.lookup(self.table, ids, dtype, cache)
        return (self.table if cache is None else cache).lookup(ids, dtype=dtype)

    def bag(self, ids: npt.NDArray[np.int64], dtype: npt.DTypeLike, **arguments: Any) -> npt.NDArray[Any]:
        """The served bags of ids; arguments and errors of :meth:`hfh_embed.Table.bag`."""
        if self.fresh.count:
            return self.fresh.bag(self.table, ids, dtype, **arguments)
        return self.table.bag(ids, dtype=dtype, **arguments)

    def fill(self, ids: npt.NDArray[np.int64], out: npt.NDArray[np.float32]) -> None:
        """Write the served rows of ids (n,) into out (n, D); raises as :meth:`lookup`."""
        if self.fresh.count:
            out[:] = self.fresh.lookup(self.table, ids, out.dtype)
        else:
            self.table.lookup(ids, out=out)

    def raw(self) -> Served:
        """The same with raw rows; InputError where the table has none."""
        return RawServed(self.table.raw, self.snapshot, self.fresh, whole=self)

    def describe(self) -> dict[str, object]:
        """What ``/v1/tables`` says about it."""
        spec = self.table.spec
        return {
            "name": spec.name,
            "num_embeddings": spec.num_embeddings,
            "embedding_dim": spec.embedding_dim,
            "raw_dim": self.table.raw_dim,
            "unknown": spec.unknown.value,
            "keys": "vocabulary" if self.table.vocabulary is not None else "hash",
            "version": self.version,
            "nbytes": self.table.nbytes,
            "snapshot_nbytes": self.snapshot.nbytes,
            "snapshot_ratio": round(self.snapshot.ratio, 4),
            "overlay_rows": self.fresh.count,
        }


@dataclass(frozen=True)
class RawServed(Served):
    """A served table of raw rows; those written since the snapshot are turned into raw ones."""

    whole: Served = field(kw_only=True)

    def lookup(
        self, ids: npt.NDArray[np.int64], dtype: npt.DTypeLike, cache: RowCache | None = None
    ) -> npt.NDArray[Any]:
        """As :meth:`Served.lookup`, (n, raw_dim)."""
        if self.fresh.count:
            rows = self.whole.lookup(ids, np.float32) @ self.whole.table.rotation.T
            with np.errstate(over="ignore"):
                return rows.astype(dtype, copy=False)
        return (self.table if cache is None else cache).lookup(ids, dtype=dtype)


class Catalog(Mapping[str, Served]):
    """The served tables. Immutable: a request that takes the catalog once never mixes two states.

    ``versions`` has the tables of every loaded snapshot, so that a request may pin one.
    """

    def __init__(
        self, tables: Mapping[str, Served], versions: Mapping[str, Mapping[str, Served]] | None = None
    ) -> None:
        self._tables = dict(tables)
        self.versions = dict(versions or {})

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
