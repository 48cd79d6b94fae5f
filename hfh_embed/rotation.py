"""Rows before their last rotation: fewer numbers with the same lengths, distances and dot products.

A row is ``[z, 1] @ A``, A the table's map with its bias as one more row. With the singular values ``A = U S V``, whose ``V`` has
orthonormal rows, ``[z, 1] @ U S`` keeps every dot product of two rows, and ``V`` turns it into the row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hfh_embed import reference
from hfh_embed.errors import InputError
from hfh_embed.layout import TableData
from hfh_embed.spec import MapSpec, TableSpec

__all__ = ["raw_dim", "unrotated"]

F32 = npt.NDArray[np.float32]
LANES = 16
"""Raw rows are filled up with zeros to whole vectors: a product with an odd number of columns takes half as long again."""


def raw_dim(table: TableSpec) -> int | None:
    """The entries of a row before its rotation; None for tables that have no smaller form: without a map from fewer entries."""
    if table.map is None or table.residual is not None:
        return None
    entries = -(-(table.latent_dim + table.map.bias) // LANES) * LANES
    return entries if entries < table.embedding_dim else None


def unrotated(data: TableData) -> tuple[TableData, F32]:
    """A table of the rows before their rotation, and the rotation (raw_dim, D): ``row = raw row @ rotation``.

    Both end with as many zeros as fill up the raw rows.

    Raises:
        InputError: the table has no smaller form.
    """
    table = data.table
    entries = raw_dim(table)
    if entries is None:
        raise InputError(
            f"table {table.name!r} has no raw rows: only a map from fewer entries than the {table.embedding_dim} of a row can be left out"
        )
    assert table.map is not None
    joined = reference.linear_map(data)
    if table.map.bias:
        joined = np.concatenate((joined, data.arrays["map.bias"].astype(np.float64)[None]))
    left, strength, rotation = np.linalg.svd(joined, full_matrices=False)
    spare = entries - len(strength)
    kept = np.pad(left * strength, ((0, 0), (0, spare))).astype(np.float32)
    arrays = {name: array for name, array in data.arrays.items() if not name.startswith("map.")}
    arrays["map.values"] = np.ascontiguousarray(kept[: table.latent_dim])
    if table.map.bias:
        arrays["map.bias"] = np.ascontiguousarray(kept[table.latent_dim])
    spec = table.replace(embedding_dim=entries, map=MapSpec(32, bias=table.map.bias))
    return TableData(spec, data.pool, arrays), np.pad(rotation, ((0, spare), (0, 0))).astype(np.float32)
