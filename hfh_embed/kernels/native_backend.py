"""The compiled kernel: hands a table's arrays to the extension, which does the rest. Tables of codes are native_coded.py's."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from hfh_embed.hashing import Addresses
from hfh_embed.kernels import Mode, _native
from hfh_embed.kernels._native import SIMD, Table
from hfh_embed.kernels.numpy_backend import level_maps, map_matrix
from hfh_embed.layout import Array, TableData
from hfh_embed.spec import LevelIndex, Locality, PoolSpec, PrivateRole, Reconstruction, SharedSpec, Unknown

__all__ = ["SIMD", "NativeKernel", "addresses", "native_table", "shared_facts"]

LOCALITIES = tuple(Locality)
LEVEL_INDEXES = tuple(LevelIndex)
MODES = get_args(Mode)
Ids = npt.NDArray[np.int64]
Facts = tuple[int, int, int, int, int, int, int, int, bool]


def shared_facts(shared: SharedSpec, pool: PoolSpec) -> Facts:
    """What the extension wants to know of a shared part, in its order."""
    return (
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
    _native.addresses(*shared_facts(shared, pool), np.ascontiguousarray(ids), *where)
    return where


class NativeKernel:
    """See :class:`hfh_embed.kernels.Kernel`. Reads nothing but a few scales before the first lookup."""

    def __init__(self, data: TableData) -> None:
        self._table = native_table(data)
        self.lookup = self._table.lookup
        self.rows = self._table.rows

    def plain_bag(
        self, ids: Any, offsets: Any, weights: Any, mode: Mode, dtype: Any, num_threads: int = 1
    ) -> npt.NDArray[Any] | None:
        return self._table.plain_bag(ids, offsets, weights, MODES.index(mode), dtype, num_threads)

    def bag(
        self,
        ids: Ids,
        bounds: Ids,
        weights: npt.NDArray[np.float32] | None,
        mode: Mode,
        out: npt.NDArray[Any],
        num_threads: int = 1,
    ) -> int:
        return self._table.bag(ids, bounds, weights, MODES.index(mode), out, num_threads)


def native_table(data: TableData, latent_only: bool = False) -> Table:
    """The compiled form of a table; with ``latent_only`` its rows are the latent ones, of any id, before codes, map and residual."""
    table, arrays = data.table, data.arrays
    if latent_only:
        native = Table(table.num_embeddings, table.latent_dim, table.latent_dim, -1, False, False)
    else:
        native = Table(
            table.num_embeddings,
            table.embedding_dim,
            table.latent_dim,
            -1 if table.padding_id is None else table.padding_id,
            table.unknown is Unknown.ERROR,
            table.unknown is Unknown.ZERO,
        )
    if table.shared is not None and (pool := data.pool) is not None:
        scale = float(arrays["shared.scale"][0])
        native.set_shared(*shared_facts(table.shared, pool), _bytes(arrays["pool.values"]), scale)
        if pool.reconstruction is Reconstruction.BILINEAR:
            native.set_bilinear(arrays["pool.linear"], arrays["pool.quadratic"])
        elif pool.reconstruction is Reconstruction.MLP:
            native.set_mlp(*(arrays[f"pool.{name}"] for name in ("w1", "b1", "w2", "b2")))
    if (private := table.private) is not None:
        scales = arrays.get("private.scale")
        native.set_private(
            _bytes(arrays["private.values"]),
            private.bits,
            private.dim,
            1.0 if scales is None or private.row_scale else float(scales[0]),
            scales.view(np.uint16) if scales is not None and private.row_scale else None,
            private.role is PrivateRole.WEIGH,
        )
    if table.exact is not None:
        scales = arrays.get("exact.scale")
        native.set_exact(
            arrays["exact.ids"],
            _bytes(arrays["exact.values"]),
            table.exact.bits,
            None if scales is None else scales.view(np.uint16),
        )
    if table.levels is not None:
        _set_levels(native, data)
    if latent_only:
        return native
    if (matrix := map_matrix(data)) is not None:
        native.set_map(matrix, arrays.get("map.bias"))
    if table.residual is not None:
        native.set_residual(*(arrays[f"residual.{name}"] for name in ("w1", "b1", "w2", "b2")))
    return native


def _set_levels(native: Table, data: TableData) -> None:
    table, arrays, levels = data.table, data.arrays, data.table.levels
    assert levels is not None
    first = 0
    for number, (level, linear) in enumerate(zip(levels.each, level_maps(data), strict=True)):
        ids = None
        if levels.index is LevelIndex.IDS:
            ids = arrays["levels.ids"][first : first + level.count]
            ids = ids.astype(np.uint32) if ids.dtype == np.uint16 else ids
            first += level.count
        scale = float(arrays[f"level{number}.scale"][0]) if level.bits <= 8 else 1.0
        values = _bytes(arrays[f"level{number}.values"])
        native.add_level(level.count, values, level.bits, level.dim, scale, linear, ids)
    index = LEVEL_INDEXES.index(levels.index)
    codes = arrays.get("levels.codes")
    native.set_level_index(index, levels.adds, codes, levels.code_bits(table.num_embeddings))


def _bytes(array: Array) -> npt.NDArray[np.uint8]:
    """A stored array as flat bytes, without a copy."""
    return array.reshape(-1).view(np.uint8)
