"""Compressing only the rows of ids that are used often enough: the others' become zeros and take a bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.dense import DenseRows
from hfh_embed.errors import InputError, RatioError, nearest_ratio
from hfh_embed.layout import SnapshotSpec
from hfh_embed.packing import pack, packed_bytes
from hfh_embed.snapshot import Snapshot

__all__ = ["SomeRows", "often_used", "widened", "within"]

HOPELESS = 1e9
"""A ratio that no form meets."""
Ids = npt.NDArray[np.int64]


class SomeRows:
    """The rows of some ids, ascending, of a dense table: see :class:`hfh_embed.dense.DenseRows`."""

    def __init__(self, rows: DenseRows, ids: Ids) -> None:
        self.rows, self.ids = rows, ids
        self.shape, self.dtype = (len(ids), rows.shape[1]), rows.dtype

    def __getitem__(self, which: slice | Ids, /) -> Any:
        return self.rows[self.ids[which]]


def often_used(frequencies: npt.NDArray[np.number] | None, least_uses: int, padding_id: int | None) -> Ids:
    """The ids that are kept, ascending."""
    if isinstance(least_uses, bool) or not isinstance(least_uses, int) or least_uses < 1:
        raise InputError(
            f"least_uses is {least_uses!r}; give the number of uses from which on an id is kept, or 0 for all"
        )
    if frequencies is None:
        raise InputError("least_uses asks how often ids are used; give frequencies")
    kept = np.flatnonzero(np.asarray(frequencies) >= least_uses)
    kept = kept[kept != padding_id] if padding_id is not None else kept
    if not len(kept):
        raise InputError(f"no id is used {least_uses} times; give a smaller least_uses")
    return kept


def within(ratio: float, shape: tuple[int, int], kept: int, made: Callable[[float], Snapshot]) -> Snapshot:
    """What ``made`` gives for the kept ids at the ratio at which they take what the bits that tell them leave of all bytes.

    Raises:
        RatioError: that is too little; its ``nearest`` is the ratio of the whole table.
    """
    n, dim = shape
    index, dense = packed_bytes(n, 1), 4 * n * dim
    left = dense / ratio - index
    try:
        return made(max(4 * kept * dim / left, 1.0) if left > 0 else HOPELESS)
    except RatioError as error:
        nearest = nearest_ratio(dense, np.ceil(4 * kept * dim / error.nearest) + index)
        raise RatioError(
            f"ratio {ratio:g} allows {int(dense / ratio):,} bytes, of which {index:,} tell the kept ids: too few for the rows of "
            f"{kept:,}; the nearest ratio that can be met is {nearest:g}, or give a larger least_uses",
            nearest=nearest,
        ) from None


def widened(snapshot: Snapshot, num_embeddings: int, kept: Ids, padding_id: int | None, keys: Any) -> Snapshot:
    """A snapshot of the kept ids' table as that of all ids."""
    (inner,) = snapshot.spec.tables
    table = inner.among(num_embeddings).replace(padding_id=padding_id)
    bits = np.zeros(num_embeddings, dtype=np.uint8)
    bits[kept] = 1
    return Snapshot(
        SnapshotSpec((table,)),
        {f"table/{table.name}/kept.bits": pack(bits, 1), **snapshot.arrays},
        vocabularies={table.name: keys} if keys is not None else None,
        metadata=snapshot.metadata
        | {"kept": f"{len(kept):,} of {num_embeddings:,} ids; the rows of the others are zeros"},
    )
