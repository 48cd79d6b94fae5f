"""Forms that a trained table can take within a number of bytes: codes along principal axes, or rows of few bits.

Each fit is made on a sample of the rows and then encodes any others, block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hfh_embed.codec.allocation import chunks_for
from hfh_embed.codec.codebooks import Codebooks, encode, fit_codebooks, pack_codes
from hfh_embed.codec.transform import Axes, QuantisedMap, half_steps, principal_axes, quantise_map
from hfh_embed.layout import Array, table_arrays
from hfh_embed.packing import levels_from_codes, pack, round_to_codes
from hfh_embed.spec import CodeChunk, CodedSpec, ExactSpec, MapSpec, PrivateSpec, TableSpec

__all__ = ["CodedFit", "Fit", "RowsFit", "fit_coded", "fit_rows", "smallest"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Progress = Callable[[int, int, str], None]
POWER = 1.25
"""Bits follow variance ** POWER: a little above 1 costs hardly any error and keeps more true neighbours."""

MAP_BITS_FROM, MAP_SHARE = 2, 0.03
"""Below 2 bits an entry, 8-bit maps and codebooks that take more than 3 % of the bytes make room for codes by having 4 bits."""


class Fit(Protocol):
    """A form fitted to a table."""

    @property
    def table(self) -> TableSpec:
        """The table with the form's parts."""

    def encode(self, rows: F32) -> tuple[dict[str, Array], F32]:
        """The stored arrays of these rows (n, D) that have one entry a row, and the rows as they will be looked up."""

    def latent(self, rows: F32) -> F32:
        """Rows (n, D) as the latent entries (n, R) that exact rows store."""

    def dense(self, latent: F32) -> F32:
        """Latent entries (n, R) as rows (n, D), by the stored map."""

    def shared_arrays(self) -> dict[str, Array]:
        """The stored arrays that all rows use."""


def nbytes(table: TableSpec) -> int:
    """Stored bytes of one table."""
    return sum(array.nbytes for array in table_arrays(table).values())


@dataclass(frozen=True)
class CodedFit:
    """Codes of chunks of principal coordinates, back through a map. With a row scale, of rows divided by their norm."""

    table: TableSpec
    codebooks: Codebooks
    map: QuantisedMap
    axes: Axes

    def latent(self, rows: F32) -> F32:
        return ((rows - self.axes.centre) @ self.axes.axes[: self.table.latent_dim].T).astype(np.float32)

    def encode(self, rows: F32) -> tuple[dict[str, Array], F32]:
        scale = None
        if self.codebooks.spec.row_scale:
            scale = np.linalg.norm(rows, axis=1).astype(np.float16)
            rows = rows / np.where(scale > 0, scale, 1).astype(np.float32)[:, None]
        codes, decoded = encode(self.latent(rows), self.codebooks)
        arrays: dict[str, Array] = {"coded.codes": pack_codes(codes, self.codebooks.spec.chunks)}
        if scale is not None:
            arrays["coded.row_scale"] = scale
            decoded *= scale.astype(np.float32)[:, None]
        return arrays, self.dense(decoded)

    def dense(self, latent: F32) -> F32:
        rows: F32 = latent @ self.map.matrix
        if self.table.map is not None and self.table.map.bias:
            rows += self.axes.centre.astype(np.float32)
        return rows

    def shared_arrays(self) -> dict[str, Array]:
        arrays = self.codebooks.arrays | self.map.arrays
        if self.table.map is not None and self.table.map.bias:
            arrays["map.bias"] = self.axes.centre.astype(np.float32)
        return arrays


def fit_coded(
    table: TableSpec,
    budget: int,
    sample: F32,
    weights: F64,
    *,
    row_scale: bool,
    exact: ExactSpec | None,
    seed: int,
    progress: Progress,
) -> CodedFit | None:
    """Fit codes to the sample (n, D) for a table of at most ``budget`` bytes; None when that is not possible.

    ``table`` gives name and sizes; its parts are replaced.
    """
    axes = _axes(sample, weights, row_scale)
    if axes is None:
        return None
    if row_scale:
        sample = _unit(sample)
    tight = budget * 8 < MAP_BITS_FROM * table.num_embeddings * table.embedding_dim
    for value_bits in (8, 4):
        least = _spec(table, _chunks(axes, 8), value_bits, row_scale, exact)
        overhead = nbytes(least) - table.num_embeddings
        if value_bits == 8 and tight and overhead > MAP_SHARE * budget:
            continue
        spec = _largest(table, budget, axes, value_bits, row_scale, exact)
        if spec is not None:
            return _fit(spec, sample, weights, axes, value_bits, seed, progress)
    return None


def _axes(sample: F32, weights: F64, row_scale: bool) -> Axes | None:
    """The sample's axes; None where it does not vary. With a row scale about the origin, so that zero rows stay zero."""
    axes = principal_axes(_unit(sample) if row_scale else sample, weights, centred=not row_scale)
    return axes if axes.variance.max() > 0 else None


def _unit(rows: F32) -> F32:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def _largest(
    table: TableSpec, budget: int, axes: Axes, value_bits: int, row_scale: bool, exact: ExactSpec | None
) -> TableSpec | None:
    """The spec with the most code bytes a row that fits the budget."""
    for row_bytes in range(max(1, budget // table.num_embeddings), 0, -1):
        chunks = _chunks(axes, 8 * row_bytes)
        if chunks and nbytes(spec := _spec(table, chunks, value_bits, row_scale, exact)) <= budget:
            return spec
    return None


def _chunks(axes: Axes, bits: int) -> tuple[CodeChunk, ...]:
    return chunks_for(axes.variance, bits, POWER)


def _spec(
    table: TableSpec, chunks: tuple[CodeChunk, ...], value_bits: int, row_scale: bool, exact: ExactSpec | None
) -> TableSpec:
    latent = max(chunk.start + chunk.size for chunk in chunks)
    coded = CodedSpec(chunks, value_bits, row_scale)
    return table.replace(
        coded=coded, private=None, exact=exact, map=MapSpec(value_bits, bias=not row_scale), latent_dim=latent
    )


def _fit(
    spec: TableSpec,
    sample: F32,
    weights: F64,
    axes: Axes,
    value_bits: int,
    seed: int,
    progress: Progress,
) -> CodedFit:
    latent = ((sample - axes.centre) @ axes.axes[: spec.latent_dim].T).astype(np.float32)
    assert spec.coded is not None
    codebooks = fit_codebooks(latent, weights, spec.coded.chunks, value_bits, seed, spec.coded.row_scale, progress)
    _, decoded = encode(latent, codebooks)
    matrix = _least_squares(decoded, sample - axes.centre, weights, axes.axes[: spec.latent_dim])
    return CodedFit(spec, codebooks, quantise_map(matrix, value_bits), axes)


def _least_squares(decoded: F32, rows: F64, weights: F64, axes: F64) -> F64:
    """The map (R, D) that turns decoded latent rows back with the least weighted error, drawn towards the axes."""
    weighted = decoded * weights[:, None]
    gram = decoded.T.astype(np.float64) @ weighted
    ridge = 1e-3 * np.trace(gram) / len(gram)
    solved: F64 = np.linalg.solve(gram + ridge * np.eye(len(gram)), weighted.T @ rows + ridge * axes)
    return solved


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


def rows_specs(table: TableSpec) -> list[TableSpec]:
    """All forms of few-bit rows, best first."""
    return [
        table.replace(
            private=PrivateSpec(table.embedding_dim, bits, row_scale=row_scale),
            coded=None,
            map=None,
            latent_dim=0,
            exact=None,
        )
        for bits in (32, 16, 8, 4, 2, 1)
        for row_scale in ((True, False) if bits <= 8 else (False,))
    ]


def fit_rows(table: TableSpec, budget: int, sample: F32) -> RowsFit | None:
    """The best few-bit rows that fit ``budget`` bytes, or None."""
    for spec in rows_specs(table):
        if nbytes(spec) <= budget:
            assert spec.private is not None
            per_table = spec.private.bits <= 8 and not spec.private.row_scale
            return RowsFit(spec, half_steps(sample.reshape(1, -1), spec.private.bits) if per_table else None)
    return None


def smallest(table: TableSpec, sample: F32, weights: F64, row_scale: bool) -> int:
    """Bytes of the smallest form that can be fitted: one bit an entry, or one byte of codes a row."""
    axes = _axes(sample, weights, row_scale)
    coded = [_spec(table, _chunks(axes, 8), 4, row_scale, None)] if axes is not None else []
    return min(nbytes(spec) for spec in [*coded, *rows_specs(table)])
