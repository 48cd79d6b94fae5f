"""Rows of trained tables from their codes, compiled: decoding and the map in one call, and the search for a row's codes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.kernels._native import CodedPart, Trellis
from hfh_embed.kernels.numpy_backend import NumpyKernel
from hfh_embed.layout import Array, TableData
from hfh_embed.spec import TrellisSpec, Unknown

__all__ = ["NativeCodedKernel", "trellis_of"]

Ids = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
NOTHING = np.empty(0, dtype=np.uint8)


def trellis_of(trellis: TrellisSpec, values: Array, norms: F32 | None) -> Trellis:
    """The compiled form of a trellis with values (books, 2**state_bits)."""
    runs = np.array([(run.steps, run.entries, run.bits) for run in trellis.runs], dtype=np.int64)
    factors = np.empty(0, dtype=np.float32) if norms is None else np.ascontiguousarray(norms, dtype=np.float32)
    return Trellis(runs, trellis.state_bits, np.ascontiguousarray(values, dtype=np.float32), factors, trellis.constant)


class CodedRows:
    """A table that has codes and a map, and no other part; its codes stay where they are."""

    def __init__(self, data: TableData, stored: NumpyKernel) -> None:
        table, arrays = data.table, data.arrays
        trellis = None
        self._ring_codes = self._chunk_codes = NOTHING
        if table.trellis is not None:
            trellis = trellis_of(table.trellis, arrays["trellis.values"], arrays.get("trellis.norms"))
            self._ring_codes = arrays["trellis.codes"]
        chunks = np.empty((0, 3), dtype=np.int64)
        books = np.empty(0, dtype=np.float32)
        if table.coded is not None:
            chunks = np.array([(c.start, c.size, c.bits) for c in table.coded.chunks], dtype=np.int64)
            books = np.concatenate([book.reshape(-1) for book in stored.codebooks]).astype(np.float32)
            self._chunk_codes = arrays["coded.codes"].reshape(-1)
        bias = arrays.get("map.bias", np.empty(0, dtype=np.float32))
        self._part = CodedPart(
            table.num_embeddings,
            trellis,
            chunks,
            books,
            np.ascontiguousarray(stored.map),
            np.ascontiguousarray(bias),
        )
        padding = -1 if table.padding_id is None else table.padding_id
        self._policy = (table.unknown is Unknown.ERROR, padding)

    @staticmethod
    def of(data: TableData, stored: NumpyKernel) -> CodedRows | None:
        """The compiled rows of a table, or None for one that has other parts."""
        table = data.table
        others = (table.shared, table.private, table.exact, table.residual)
        mapped = table.map is not None and (table.trellis is not None or table.coded is not None)
        if (
            not mapped
            or any(part is not None for part in others)
            or (table.coded is not None and table.coded.row_scale)
        ):
            return None
        return CodedRows(data, stored)

    def rows(self, ids: Ids, out: npt.NDArray[Any], num_threads: int) -> int:
        """See :meth:`hfh_embed.kernels.Kernel.rows`."""
        if out.dtype == np.float32:
            return self._part.rows(self._ring_codes, self._chunk_codes, ids, out, *self._policy, num_threads)
        half = out.view(np.uint16)
        return self._part.rows_half(self._ring_codes, self._chunk_codes, ids, half, *self._policy, num_threads)


class NativeCodedKernel(NumpyKernel):
    """See :class:`hfh_embed.kernels.Kernel`: tables with codes. Those that have other parts too stay with numpy."""

    @functools.cached_property
    def _coded_rows(self) -> CodedRows | None:
        return CodedRows.of(self._data, self)  # at the first lookup, since it reads the map and the codebooks

    def rows(self, ids: Ids, out: npt.NDArray[Any], num_threads: int = 1) -> int:
        if self._coded_rows is None:
            return super().rows(ids, out, num_threads)
        return self._coded_rows.rows(ids, out, num_threads)
