"""The numpy kernel with its dearest part compiled: hashing, fetching and summing what a row shares.

A table that has nothing else is answered in one call of the extension, the others in the numpy kernel's blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.hashing import Addresses
from hfh_embed.kernels._native import SIMD, SharedPart
from hfh_embed.kernels.native_coded import CodedRows
from hfh_embed.kernels.numpy_backend import NumpyKernel
from hfh_embed.layout import TableData
from hfh_embed.spec import Locality, PoolSpec, Reconstruction, SharedSpec, Unknown

__all__ = ["SIMD", "NativeKernel", "addresses"]

LOCALITIES = tuple(Locality)
Ids = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


def _part(shared: SharedSpec, pool: PoolSpec) -> SharedPart:
    return SharedPart(
        shared.key,
        pool.slots,
        pool.bits,
        shared.dim,
        shared.num_hashes,
        shared.chunk_size,
        LOCALITIES.index(shared.locality),
        shared.lines,
        shared.signs,
    )


def addresses(shared: SharedSpec, pool: PoolSpec, ids: Ids) -> Addresses:
    """As :func:`hfh_embed.hashing.addresses`, bit for bit."""
    shape = (len(ids), shared.num_chunks, shared.num_hashes)
    where = Addresses(np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.bool_))
    _part(shared, pool).addresses(np.ascontiguousarray(ids), *where)
    return where


class NativeKernel(NumpyKernel):
    """See :class:`hfh_embed.kernels.Kernel`."""

    def __init__(self, data: TableData) -> None:
        super().__init__(data)
        table = data.table
        self._part: SharedPart | None = None
        self._alone = False
        if table.shared is not None and data.pool is not None and data.pool.reconstruction is Reconstruction.SUM:
            self._part = _part(table.shared, data.pool)
            self._pool_bytes = data.arrays["pool.values"].view(np.uint8)
            self._scale = float(data.arrays["shared.scale"][0])
            others = (table.private, table.coded, table.exact, table.map, table.residual)
            self._alone = all(part is None for part in others) and table.shared.dim == table.latent_dim
        self._coded_rows = CodedRows.of(data, self) if table.map is not None else None
        padding = -1 if table.padding_id is None else table.padding_id
        self._policy = (
            table.num_embeddings,
            table.unknown is Unknown.ERROR,
            table.unknown is Unknown.ZERO,
            padding,
        )

    def rows(self, ids: Ids, out: npt.NDArray[Any], num_threads: int = 1) -> int:
        if self._coded_rows is not None:
            return self._coded_rows.rows(ids, out, num_threads)
        if self._part is None or not self._alone:
            return super().rows(ids, out, num_threads)
        if out.dtype == np.float32:
            return self._part.rows(self._pool_bytes, self._scale, ids, out, *self._policy, num_threads)
        return self._part.rows_half(self._pool_bytes, self._scale, ids, out.view(np.uint16), *self._policy, num_threads)

    def _shared(self, ids: Ids, weights: F32 | None) -> F32:
        shared = self._data.table.shared
        if self._part is None or weights is not None or shared is None:
            return super()._shared(ids, weights)
        out = np.empty((len(ids), shared.dim), dtype=np.float32)
        self._part.sums(self._pool_bytes, self._scale, np.ascontiguousarray(ids), out)
        return out
