"""Encoding rows with the fit that a snapshot stores: books, factors and map stay, only the codes are new.

A row becomes latent entries by the pseudo-inverse of the stored map, so nothing of the fit is needed that a lookup does not read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hfh_embed import reference
from hfh_embed.codec.transform import half_steps
from hfh_embed.codec.trellis import FARTHEST, LARGEST, encode_rings, pack_rings
from hfh_embed.errors import InputError
from hfh_embed.layout import Array, TableData
from hfh_embed.packing import pack, round_to_codes
from hfh_embed.windows import windows_of

__all__ = ["StoredFit", "encode_values", "put_bits"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
TINY = 1e-30
RANK = 1e-6
"""Directions of a map that are this much weaker than its strongest say nothing about a row."""


class StoredFit:
    """A table's fit, ready to encode other rows: every part but a pool's and a residual network."""

    def __init__(self, data: TableData, threads: int = 1) -> None:
        """InputError where rows share what they are made of, so that none can be encoded alone."""
        table, arrays = data.table, data.arrays
        if table.shared is not None or table.residual is not None or table.levels is not None:
            what = "values that all ids share" if table.shared is not None else "a network"
            what = "levels that were trained" if table.levels is not None else what
            raise InputError(
                f"rows of table {table.name!r} come from {what}, so single rows cannot be encoded; "
                "train it on, or compress the new dense table"
            )
        self.table, self.arrays, self.threads = table, arrays, threads
        self.map = reference.linear_map(data) if table.map is not None else np.eye(table.latent_dim)
        self.inverse = np.linalg.pinv(self.map, rcond=RANK)
        self.bias = np.zeros(table.embedding_dim)
        if table.map is not None and table.map.bias:
            self.bias = arrays["map.bias"].astype(np.float64)
        self.weight = np.maximum((self.map**2).sum(axis=1), TINY)
        """(R,): what a latent entry's squared error costs in the row."""
        self.books = reference.codebooks(data) if table.coded is not None else []

    def latent(self, rows: npt.NDArray[np.floating]) -> F64:
        """The latent entries (n, R) nearest to rows (n, D): what exact rows store."""
        found: F64 = (rows - self.bias) @ self.inverse
        return found

    def encode(self, rows: npt.NDArray[np.floating]) -> dict[str, Array]:
        """The stored arrays of rows (n, D) that have one entry a row; rings of a trellis as single bits (n, row_bits)."""
        rest = self.latent(rows)
        arrays: dict[str, Array] = {}
        left = rows - self.bias
        if self.table.coded is not None:
            named = self._coded(rest, arrays)
            rest, left = rest - named, left - named @ self.map
        if self.table.trellis is not None:
            rest = rest - self._rings(rest, left, arrays)
        if (private := self.table.private) is not None:
            scale = self.arrays.get("private.scale") if not private.row_scale else None
            values, scales = encode_values(rest[:, : private.dim], private.bits, scale)
            arrays["private.values"] = values
            if private.row_scale:
                arrays["private.scale"] = scales
        return arrays

    def _coded(self, latent: F64, arrays: dict[str, Array]) -> F64:
        """Codes of the nearest centroids, chunk after chunk, and the latent entries (n, R) that they stand for."""
        coded = self.table.coded
        assert coded is not None
        scale = np.ones(len(latent))
        if coded.row_scale:
            usual = sum(
                float(((book**2) @ self.weight[chunk.start : chunk.start + chunk.size]).mean())
                for chunk, book in zip(coded.chunks, self.books, strict=True)
            )
            scale = np.sqrt((latent**2) @ self.weight / max(usual, TINY))
        for _ in range(3 if coded.row_scale else 1):
            codes, named = self._nearest(latent / np.maximum(scale, TINY)[:, None])
            if coded.row_scale:
                length = (named**2) @ self.weight
                fitted = np.divide((latent * named) @ self.weight, length, out=np.zeros(len(latent)), where=length > 0)
                scale = np.clip(fitted, 0, 65_504).astype(np.float16).astype(np.float64)
        arrays["coded.codes"] = np.packbits(codes, axis=1, bitorder="little")
        if coded.row_scale:
            arrays["coded.row_scale"] = scale.astype(np.float16)
        found: F64 = named * scale[:, None]
        return found

    def _nearest(self, latent: F64) -> tuple[npt.NDArray[np.uint8], F64]:
        """Codes as single bits (n, code_bits), and what they name (n, R)."""
        coded = self.table.coded
        assert coded is not None
        bits, named = [], np.zeros_like(latent)
        for chunk, book in zip(coded.chunks, self.books, strict=True):
            part = slice(chunk.start, chunk.start + chunk.size)
            weighted = book * self.weight[part]
            scores = (latent - named)[:, part] @ weighted.T - 0.5 * (book * weighted).sum(axis=1)
            codes = scores.argmax(axis=1)
            named[:, part] += book[codes]
            bits.append(((codes[:, None] >> np.arange(chunk.bits)) & 1).astype(np.uint8))
        return np.concatenate(bits, axis=1), named

    def _rings(self, latent: F64, rows: F64, arrays: dict[str, Array]) -> F64:
        """Rings of bits, with the code of the factor, of rows (n, D) and their latent entries; what they stand for, (n, R)."""
        trellis = self.table.trellis
        assert trellis is not None
        steps, width = slice(0, trellis.entries), trellis.width
        target, constant = latent[:, steps], np.zeros(self.map.shape[1])
        if trellis.norm_bits:
            lengths = np.linalg.norm(rows, axis=1)
            unit = rows / np.where(lengths > 0, lengths, 1)[:, None]
            if trellis.constant:
                constant = self.map[trellis.entries]
            target = (unit - constant) @ np.linalg.pinv(self.map[steps], rcond=RANK)
        step = FARTHEST / LARGEST[trellis.value_bits]
        values = self.arrays["trellis.values"].astype(np.float32)
        weight = self.weight[steps]
        states = encode_rings(
            (target * step).astype(np.float32), trellis, values * step, weight / weight.mean(), self.threads
        )
        windows = windows_of(trellis)
        found = np.zeros_like(latent)
        found[:, steps] = values[windows.book, states[:, windows.step]]
        norms = None
        if trellis.norm_bits:
            if trellis.constant:
                found[:, trellis.entries] = 1
            norms = self._factors(rows, found @ self.map)
            found[:, :width] *= self.arrays["trellis.norms"][norms].astype(np.float64)[:, None]
        arrays["trellis.codes"] = pack_rings(states, norms, trellis)
        return found

    def _factors(self, rows: F64, shapes: F64) -> npt.NDArray[np.uint8]:
        """The factor of each row that leaves the least error."""
        stored = self.arrays["trellis.norms"].astype(np.float64)
        order = np.argsort(stored, kind="stable")
        length = (shapes**2).sum(axis=1)
        wanted = np.divide((rows * shapes).sum(axis=1), length, out=np.zeros(len(rows)), where=length > 0)
        wanted[~rows.any(axis=1)] = 0
        ascending = stored[order]
        places = np.searchsorted((ascending[1:] + ascending[:-1]) / 2, wanted)
        return order[places].astype(np.uint8)


def encode_values(latent: npt.NDArray[np.floating], bits: int, scale: Array | None = None) -> tuple[Array, Array]:
    """Latent entries (n, K) as stored values of ``bits`` bits, and the float16 scale of each row (none from 16 bits on).

    A ``scale`` (1,) of the whole table is used as it is.
    """
    if bits >= 16:
        with np.errstate(over="ignore"):
            return latent.astype(np.float16 if bits == 16 else np.float32), np.empty(0, dtype=np.float16)
    if scale is None:
        with np.errstate(over="ignore"):
            scale = half_steps(latent, bits).astype(np.float16)
        if not np.isfinite(scale).all():
            raise InputError("a row is too large for the scale of its form (float16); give rows of the table's size")
        return pack(round_to_codes(latent, scale.astype(np.float64)[:, None], bits), bits), scale
    return pack(round_to_codes(latent, scale.astype(np.float64), bits), bits), scale


def put_bits(stream: npt.NDArray[np.uint8], ids: Ids, bits: npt.NDArray[np.uint8]) -> None:
    """Write rows of single bits (n, row_bits) over those of distinct ids in a string of bits, lowest bit of a byte first."""
    row_bits = bits.shape[1]
    for group in range(8):  # ids that are equal modulo 8 begin at the same bit of a byte and never share one
        mine = np.flatnonzero(ids % 8 == group)
        if not len(mine):
            continue
        shift = group * row_bits % 8
        width = -(-(shift + row_bits) // 8)
        wide = np.zeros((len(mine), 8 * width), dtype=np.uint8)
        mask = wide[:1].copy()
        wide[:, shift : shift + row_bits] = bits[mine]
        mask[:, shift : shift + row_bits] = 1
        places = (ids[mine] * row_bits // 8)[:, None] + np.arange(width)
        kept = stream[places] & ~np.packbits(mask, axis=1, bitorder="little")
        stream[places] = kept | np.packbits(wide, axis=1, bitorder="little")
