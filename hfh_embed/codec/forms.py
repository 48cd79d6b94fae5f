"""Forms that a trained table can take within a number of bytes: codes (coded.py), or rows of few bits each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hfh_embed.codec.coded import nbytes
from hfh_embed.codec.transform import half_steps
from hfh_embed.layout import Array
from hfh_embed.packing import levels_from_codes, pack, round_to_codes
from hfh_embed.spec import PrivateSpec, TableSpec

__all__ = ["Fit", "RowsFit", "fit_rows", "rows_specs"]

F32 = npt.NDArray[np.float32]


class Fit(Protocol):
    """A form fitted to a table."""

    @property
    def table(self) -> TableSpec:
        """The table with the form's parts."""

    def encode(self, rows: F32) -> tuple[dict[str, Array], F32]:
        """The stored arrays of these rows (n, D) that have one entry a row, and the rows as they will be looked up.

        Rings of a trellis come as single bits, which the caller packs.
        """

    def latent(self, rows: F32) -> F32:
        """Rows (n, D) as the latent entries (n, R) that exact rows store."""

    def dense(self, latent: F32) -> F32:
        """Latent entries (n, R) as rows (n, D), by the stored map."""

    def shared_arrays(self) -> dict[str, Array]:
        """The stored arrays that all rows use."""


@dataclass(frozen=True)
class RowsFit:
    """Every entry in few bits of its own, with a scale a row or a table."""

    table: TableSpec
    scale: F32 | None

    def latent(self, rows: F32) -> F32:
        return rows

    def encode(self, rows: F32) -> tuple[dict[str, Array], F32]:
        private = self.table.private
        assert private is not None
        bits = private.bits
        if bits >= 16:
            with np.errstate(over="ignore"):
                values = rows.astype(np.float16 if bits == 16 else np.float32)
            return {"private.values": values}, values.astype(np.float32)
        arrays: dict[str, Array] = {}
        if private.row_scale:
            arrays["private.scale"] = half_steps(rows, bits).astype(np.float16)
            scale = arrays["private.scale"].astype(np.float64)[:, None]
        else:
            assert self.scale is not None
            scale = self.scale.astype(np.float64)
        codes = round_to_codes(rows, scale, bits)
        arrays["private.values"] = pack(codes, bits)
        return arrays, (levels_from_codes(codes, bits) * scale).astype(np.float32)

    def dense(self, latent: F32) -> F32:
        return latent

    def shared_arrays(self) -> dict[str, Array]:
        return {} if self.scale is None else {"private.scale": self.scale}


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


def fit_rows(table: TableSpec, budget: int, sample: F32, zeros: bool = False) -> RowsFit | None:
    """The best few-bit rows that fit ``budget`` bytes, with ``zeros`` among those that keep rows of zeros, or None."""
    for spec in rows_specs(table, zeros):
        if nbytes(spec) <= budget:
            assert spec.private is not None
            per_table = spec.private.bits <= 8 and not spec.private.row_scale
            return RowsFit(spec, half_steps(sample.reshape(1, -1), spec.private.bits) if per_table else None)
    return None
