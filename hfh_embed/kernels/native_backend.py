"""The numpy kernel with its dearest part compiled: hashing, fetching and summing what a row shares."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hfh_embed.hashing import Addresses
from hfh_embed.kernels._native import SharedPart
from hfh_embed.kernels.numpy_backend import NumpyKernel
from hfh_embed.layout import TableData
from hfh_embed.spec import Locality, PoolSpec, Reconstruction, SharedSpec

__all__ = ["NativeKernel", "addresses"]

LOCALITIES = tuple(Locality)


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


def addresses(shared: SharedSpec, pool: PoolSpec, ids: npt.NDArray[np.int64]) -> Addresses:
    """As :func:`hfh_embed.hashing.addresses`, bit for bit."""
    shape = (len(ids), shared.num_chunks, shared.num_hashes)
    where = Addresses(np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.bool_))
    _part(shared, pool).addresses(np.ascontiguousarray(ids), *where)
    return where


class NativeKernel(NumpyKernel):
    """See :class:`hfh_embed.kernels.Kernel`."""

    def __init__(self, data: TableData) -> None:
        super().__init__(data)
        self._part: SharedPart | None = None
        if data.table.shared is not None and data.pool is not None and data.pool.reconstruction is Reconstruction.SUM:
            self._part = _part(data.table.shared, data.pool)
            self._pool_bytes = data.arrays["pool.values"].view(np.uint8)
            self._scale = float(data.arrays["shared.scale"][0])

    def _shared(self, ids: npt.NDArray[np.int64], weights: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
        shared = self._data.table.shared
        if self._part is None or weights is not None or shared is None:
            return super()._shared(ids, weights)
        out = np.empty((len(ids), shared.dim), dtype=np.float32)
        self._part.sums(self._pool_bytes, self._scale, np.ascontiguousarray(ids), out)
        return out
