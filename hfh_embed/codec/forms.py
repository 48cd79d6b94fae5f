"""Rows of few bits each: the form of a trained table beside codes (coded.py)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hfh_embed.codec.coded import nbytes
from hfh_embed.codec.stored import StoredFit
from hfh_embed.codec.transform import half_steps
from hfh_embed.layout import TableData
from hfh_embed.spec import PrivateSpec, TableSpec

__all__ = ["fit_rows", "rows_specs"]

F32 = npt.NDArray[np.float32]


def rows_specs(table: TableSpec, zeros: bool = False) -> list[TableSpec]:
    """All forms of few-bit rows, best first; with ``zeros`` only those that keep rows of zeros."""
    return [
        table.replace(
            private=PrivateSpec(table.embedding_dim, bits, row_scale=row_scale),
            coded=None,
            trellis=None,
            map=None,
            latent_dim=0,
            exact=None,
        )
        for bits in (32, 16, 8, 4, 2, 1)
        for row_scale in ((False,) if bits > 8 else (True,) if zeros else (True, False))
    ]


def fit_rows(table: TableSpec, budget: int, sample: F32, zeros: bool = False) -> StoredFit | None:
    """The best few-bit rows that fit ``budget`` bytes, with ``zeros`` among those that keep rows of zeros, or None."""
    for spec in rows_specs(table, zeros):
        if nbytes(spec) <= budget:
            assert spec.private is not None
            per_table = spec.private.bits <= 8 and not spec.private.row_scale
            scale = {"private.scale": half_steps(sample.reshape(1, -1), spec.private.bits)} if per_table else {}
            return StoredFit(TableData(spec, None, scale))
    return None
