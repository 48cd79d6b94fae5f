"""Which arrays a pool, a table and a whole snapshot consist of: their names, dtypes and shapes, hence every byte.

`hfh plan`, the file, ``Snapshot.nbytes`` and the torch modules all count with this one function, so they agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import SpecError, TableNotFoundError
from hfh_embed.packing import packed_bytes
from hfh_embed.spec import LevelIndex, LevelsSpec, PoolSpec, Reconstruction, ResidualSpec, TableSpec, check_pair

__all__ = ["ArraySpec", "SnapshotSpec", "TableData", "pool_arrays", "residual_arrays", "table_arrays"]

Array = npt.NDArray[Any]
U8, U16, U32, I64 = np.dtype("u1"), np.dtype("<u2"), np.dtype("<u4"), np.dtype("<i8")
I8, I16 = np.dtype("i1"), np.dtype("<i2")
F16, F32 = np.dtype("<f2"), np.dtype("<f4")
FLOATS: dict[int, np.dtype[np.generic]] = {16: F16, 32: F32}


@dataclass(frozen=True)
class ArraySpec:
    """One stored array."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


def _values(bits: int, rows: int, count: int) -> ArraySpec:
    """``rows`` rows of ``count`` values: packed levels, or floats."""
    if bits in FLOATS:
        return ArraySpec(FLOATS[bits], (rows, count))
    return ArraySpec(U8, (rows, packed_bytes(count, bits)))


def pool_arrays(pool: PoolSpec) -> dict[str, ArraySpec]:
    """The arrays of a pool: its values, flat, and its reconstruction network."""
    values = _values(pool.bits, 1, pool.slots)
    arrays = {"values": ArraySpec(values.dtype, values.shape[1:])}
    u, h = pool.num_hashes, pool.hidden
    match pool.reconstruction:
        case Reconstruction.SUM:
            pass
        case Reconstruction.BILINEAR:
            arrays |= {"linear": ArraySpec(F32, (u,)), "quadratic": ArraySpec(F32, (u, u))}
        case Reconstruction.MLP:
            arrays |= {
                "w1": ArraySpec(F32, (u, h)),
                "b1": ArraySpec(F32, (h,)),
                "w2": ArraySpec(F32, (h,)),
                "b2": ArraySpec(F32, (1,)),
            }
    return arrays


def residual_arrays(residual: ResidualSpec, dim: int) -> dict[str, ArraySpec]:
    """The arrays of a residual network on rows of ``dim`` entries."""
    h = residual.hidden
    return {
        "w1": ArraySpec(F32, (dim, h)),
        "b1": ArraySpec(F32, (h,)),
        "w2": ArraySpec(F32, (h, dim)),
        "b2": ArraySpec(F32, (dim,)),
    }


def table_arrays(table: TableSpec) -> dict[str, ArraySpec]:
    """The arrays that belong to one table alone."""
    if table.kept is not None:
        return {"kept.bits": ArraySpec(U8, (packed_bytes(table.num_embeddings, 1),))} | table_arrays(table.inner)
    n, latent = table.num_embeddings, table.latent_dim
    arrays: dict[str, ArraySpec] = {}
    if table.shared is not None:
        arrays["shared.scale"] = ArraySpec(F32, (1,))
    if (private := table.private) is not None:
        arrays["private.values"] = _values(private.bits, n, private.dim)
        if private.bits <= 8:
            arrays["private.scale"] = ArraySpec(F16, (n,)) if private.row_scale else ArraySpec(F32, (1,))
    if (coded := table.coded) is not None:
        arrays["coded.codes"] = ArraySpec(U8, (n, packed_bytes(coded.code_bits, 1)))
        values = _values(coded.codebook_bits, 1, coded.codebook_values)
        arrays["coded.codebooks"] = ArraySpec(values.dtype, values.shape[1:])
        if coded.codebook_bits <= 8:
            arrays["coded.codebook_scales"] = ArraySpec(F32, (len(coded.chunks),))
        if coded.row_scale:
            arrays["coded.row_scale"] = ArraySpec(F16, (n,))
    if (trellis := table.trellis) is not None:
        arrays["trellis.codes"] = ArraySpec(U8, (packed_bytes(n, trellis.row_bits),))
        arrays["trellis.values"] = ArraySpec(
            I8 if trellis.value_bits == 8 else I16, (trellis.books, 1 << trellis.state_bits)
        )
        if trellis.norm_bits:
            arrays["trellis.norms"] = ArraySpec(F32, (1 << trellis.norm_bits,))
    if (exact := table.exact) is not None:
        arrays["exact.ids"] = ArraySpec(U32 if n <= 2**32 else I64, (exact.count,))
        arrays["exact.values"] = _values(exact.bits, exact.count, latent)
        if exact.bits <= 8:
            arrays["exact.scale"] = ArraySpec(F16, (exact.count,))
    if (levels := table.levels) is not None:
        arrays |= _level_arrays(levels, n, latent)
    if (linear := table.map) is not None:
        arrays["map.values"] = _values(linear.bits, latent, table.embedding_dim)
        if linear.bands:
            arrays["map.values"] = ArraySpec(
                U8, (sum(b.rows * packed_bytes(table.embedding_dim, b.bits) for b in linear.bands),)
            )
        if linear.bits <= 8:
            arrays["map.scale"] = ArraySpec(F32, (latent,))
        if linear.bias:
            arrays["map.bias"] = ArraySpec(F32, (table.embedding_dim,))
    return arrays


def _level_arrays(levels: LevelsSpec, n: int, latent: int) -> dict[str, ArraySpec]:
    """The arrays of a table's levels: what finds their ids, and each level's rows and map."""
    arrays: dict[str, ArraySpec] = {}
    if levels.index is LevelIndex.CODES:
        arrays["levels.codes"] = ArraySpec(U8, (packed_bytes(n, levels.code_bits(n)),))
    elif levels.index is LevelIndex.IDS:
        arrays["levels.ids"] = ArraySpec(U16 if n <= 2**16 else U32 if n <= 2**32 else I64, (levels.count,))
    for number, level in enumerate(levels.each):
        arrays[f"level{number}.values"] = _values(level.bits, level.count, level.dim)
        if level.bits <= 8:
            arrays[f"level{number}.scale"] = ArraySpec(F32, (1,))
        if level.dim < latent:
            arrays[f"level{number}.map.values"] = _values(level.map_bits, level.dim, latent)
            if level.map_bits <= 8:
                arrays[f"level{number}.map.scale"] = ArraySpec(F16, (level.dim,))
    return arrays


@dataclass(frozen=True)
class TableData:
    """One table with everything that its rows are computed from.

    ``arrays`` has the table's own arrays under their names and the borrowed ones as ``pool.*`` and ``residual.*``.
    """

    table: TableSpec
    pool: PoolSpec | None
    arrays: Mapping[str, Array]


@dataclass(frozen=True)
class SnapshotSpec:
    """The pools and tables of one snapshot, in a fixed order."""

    tables: tuple[TableSpec, ...]
    pools: tuple[PoolSpec, ...] = ()

    def __post_init__(self) -> None:
        if not self.tables:
            raise SpecError("a snapshot without tables; give at least one")
        for what, names in (("table", [t.name for t in self.tables]), ("pool", [p.name for p in self.pools])):
            twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
            if twice:
                raise SpecError(f"more than one {what} is named {sorted(twice)[0]!r}; names must differ")
        used = set()
        for table in self.tables:
            if table.shared is not None:
                check_pair(table, self.pool(table.shared.pool))
                used.add(table.shared.pool)
        if unused := {pool.name for pool in self.pools} - used:
            raise SpecError(f"pool {sorted(unused)[0]!r} is read by no table; leave it out")
        self.residuals()

    def table(self, name: str) -> TableSpec:
        """The table of this name; TableNotFoundError lists those there are."""
        for table in self.tables:
            if table.name == name:
                return table
        raise TableNotFoundError(f"no table is named {name!r}; there are {', '.join(t.name for t in self.tables[:20])}")

    def pool(self, name: str) -> PoolSpec:
        """The pool of this name."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise SpecError(f"no pool is named {name!r}; there are {', '.join(p.name for p in self.pools) or 'none'}")

    def residuals(self) -> dict[str, tuple[ResidualSpec, int]]:
        """Each residual group with its rows' length."""
        groups: dict[str, tuple[ResidualSpec, int]] = {}
        for table in self.tables:
            if table.residual is not None:
                mine = (table.residual, table.embedding_dim)
                if groups.setdefault(table.residual.group, mine) != mine:
                    raise SpecError(
                        f"tables of residual group {table.residual.group!r} differ in embedding_dim or hidden; give them groups of their own"
                    )
        return groups

    def arrays(self) -> dict[str, ArraySpec]:
        """Every stored array under its full name (``pool/…``, ``table/…``, ``residual/…``), in file order.

        Pools come first, each a multiple of 64 bytes; the rest by falling item size, so that all stay aligned.
        """
        pools = {f"pool/{p.name}/values": pool_arrays(p)["values"] for p in self.pools}
        rest: dict[str, ArraySpec] = {}
        for pool in self.pools:
            rest |= {f"pool/{pool.name}/{key}": a for key, a in pool_arrays(pool).items() if key != "values"}
        for table in self.tables:
            rest |= {f"table/{table.name}/{key}": a for key, a in table_arrays(table).items()}
        for group, (residual, dim) in self.residuals().items():
            rest |= {f"residual/{group}/{key}": a for key, a in residual_arrays(residual, dim).items()}
        return pools | dict(sorted(rest.items(), key=lambda item: -item[1].dtype.itemsize))

    def data(self, name: str, arrays: Mapping[str, Array]) -> TableData:
        """The table of this name over the arrays of a whole snapshot."""
        table = self.table(name)
        pool = self.pool(table.shared.pool) if table.shared is not None else None
        mine: dict[str, Array] = {key: arrays[f"table/{name}/{key}"] for key in table_arrays(table)}
        if pool is not None:
            mine |= {f"pool.{key}": arrays[f"pool/{pool.name}/{key}"] for key in pool_arrays(pool)}
        if table.residual is not None:
            names = residual_arrays(table.residual, table.embedding_dim)
            mine |= {f"residual.{key}": arrays[f"residual/{table.residual.group}/{key}"] for key in names}
        return TableData(table, pool, mine)

    @property
    def nbytes(self) -> int:
        """All stored bytes that the ratio counts."""
        return sum(array.nbytes for array in self.arrays().values())

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the uncompressed float32 tables."""
        return sum(table.dense_nbytes for table in self.tables)

    @property
    def ratio(self) -> float:
        """Dense bytes over stored bytes."""
        return self.dense_nbytes / self.nbytes

    def parts(self) -> Iterator[tuple[str, int]]:
        """Every array's full name with its bytes, largest first."""
        yield from sorted(((name, array.nbytes) for name, array in self.arrays().items()), key=lambda part: -part[1])
