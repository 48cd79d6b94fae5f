"""Rows of trained tables from their codes, compiled: decoding and the map in one call, and the search for a row's codes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.kernels._native import CodedPart, StageSearch, Table, Trellis
from hfh_embed.kernels.native_backend import native_table
from hfh_embed.kernels.numpy_backend import NumpyKernel
from hfh_embed.layout import Array
from hfh_embed.spec import TrellisSpec, Unknown

__all__ = ["NativeCodedKernel", "stage_search", "trellis_of"]

Ids = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
NOTHING = np.empty(0, dtype=np.uint8)
PRODUCT_ROWS = 4096
"""Rows that are held together where products need them."""


def trellis_of(trellis: TrellisSpec, values: Array, norms: F32 | None) -> Trellis:
    """The compiled form of a trellis with values (books, 2**state_bits)."""
    runs = np.array([(run.steps, run.entries, run.bits) for run in trellis.runs], dtype=np.int64)
    factors = np.empty(0, dtype=np.float32) if norms is None else np.ascontiguousarray(norms, dtype=np.float32)
    return Trellis(runs, trellis.state_bits, np.ascontiguousarray(values, dtype=np.float32), factors, trellis.constant)


def stage_search(centroids: F32) -> StageSearch:
    """The compiled search among the centroids (stages * 256, R) of stages."""
    kept = np.ascontiguousarray(centroids, dtype=np.float32)
    return StageSearch(kept, kept @ kept.T)


class NativeCodedKernel(NumpyKernel):
    """See :class:`hfh_embed.kernels.Kernel`: tables with codes. Codes and map are compiled, and so are the other parts of latent
    rows; a residual network and codes with a scale a row are numpy's.
    """

    @functools.cached_property
    def _part(self) -> CodedPart | None:
        """Codes and map, made at the first lookup, since it reads the map and the codebooks; None where numpy does it all."""
        table, arrays = self._data.table, self._data.arrays
        if table.map is None or (table.coded is not None and table.coded.row_scale):
            return None
        trellis, chunks, books = None, np.empty((0, 3), dtype=np.int64), np.empty(0, dtype=np.float32)
        if table.trellis is not None:
            trellis = trellis_of(table.trellis, arrays["trellis.values"], arrays.get("trellis.norms"))
        if table.coded is not None:
            chunks = np.array([(c.start, c.size, c.bits) for c in table.coded.chunks], dtype=np.int64)
            books = np.concatenate([book.reshape(-1) for book in self.codebooks]).astype(np.float32)
        return CodedPart(
            table.num_embeddings,
            trellis,
            arrays["trellis.codes"] if trellis is not None else NOTHING,
            chunks,
            books,
            arrays["coded.codes"].reshape(-1) if table.coded is not None else NOTHING,
            np.ascontiguousarray(self.map),
            np.ascontiguousarray(arrays.get("map.bias", np.empty(0, dtype=np.float32))),
            -1 if table.padding_id is None else table.padding_id,
            table.unknown is Unknown.ERROR,
        )

    @functools.cached_property
    def _alone(self) -> CodedPart | None:
        """The compiled codes of a table that has no other part."""
        table = self._data.table
        others = (table.shared, table.private, table.exact, table.residual)
        return None if any(part is not None for part in others) else self._part

    @functools.cached_property
    def _others(self) -> Table:
        return native_table(self._data, latent_only=True)

    def lookup(self, ids: Any, dtype: Any, num_threads: int = 1) -> npt.NDArray[Any] | None:
        return None if self._alone is None else self._alone.lookup(ids, dtype, num_threads)

    def rows(self, ids: Ids, out: npt.NDArray[Any], num_threads: int = 1) -> int:
        return super().rows(ids, out, num_threads) if self._alone is None else self._alone.rows(ids, out, num_threads)

    def products(self, first: int, hidden: F32, out: F32, num_threads: int = 1) -> None:
        """Write the products of hidden (B, D) with the rows of ids first, first + 1, ... into ``out`` (B, n); a padding id's is not 0."""
        table, last = self._data.table, first + out.shape[1]
        if self._part is None or any(part is not None for part in (table.shared, table.private, table.residual)):
            for begin in range(first, last, PRODUCT_ROWS):
                end = min(last, begin + PRODUCT_ROWS)
                out[:, begin - first : end - first] = hidden @ self._rows(np.arange(begin, end)).T
            return
        self._part.products(first, hidden, out, num_threads)
        if table.exact is not None:
            exact = self._data.arrays["exact.ids"]
            begin, end = np.searchsorted(exact, [first, last])
            ids = exact[begin:end].astype(np.int64)
            out[:, ids - first] = hidden @ self._rows(ids).T

    def _rows(self, ids: Ids) -> F32:
        if self._part is None:
            return super()._rows(ids)
        table = self._data.table
        rows = np.empty((len(ids), table.embedding_dim), dtype=np.float32)
        if self._alone is not None:
            self._alone.rows(ids, rows)
            return rows
        latent = np.empty((len(ids), table.latent_dim), dtype=np.float32)
        self._others.rows(ids, latent)
        coded = ids
        if table.exact is not None:
            coded = np.where(self._exact(ids)[1], table.num_embeddings, ids)  # an exact row has no codes
        self._part.add(coded, latent, rows)
        return self._finished(rows, ids)
