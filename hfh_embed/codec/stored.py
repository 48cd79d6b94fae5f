"""Encoding rows with the fit that a snapshot stores: books, factors and map stay, only the codes are new.

A row becomes latent entries by the pseudo-inverse of the stored map, so nothing of the fit is needed that a lookup does not read, and
a row gets the same codes whether it is compressed or updated.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hfh_embed import reference
from hfh_embed.codec.codebooks import STAGE_BITS, Search, beam_for, decoded
from hfh_embed.codec.transform import half_steps
from hfh_embed.codec.trellis import FARTHEST, LARGEST, encode_rings, pack_rings
from hfh_embed.errors import InputError
from hfh_embed.layout import Array, TableData
from hfh_embed.packing import levels_from_codes, pack, round_to_codes, unpack
from hfh_embed.windows import windows_of

__all__ = ["StoredFit", "encode_values", "nearest_factors", "put_bits"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
TINY = 1e-30
RANK = 1e-6
"""Directions of a map that are this much weaker than its strongest say nothing about a row."""

RIDGE = 1e-5
"""Entries of a trellis are drawn to zero by this share of the mean entry's weight: weak ones would otherwise take on, far beyond their
values, what rounding the strong ones' rows of the map left."""


class StoredFit:
    """A table's fit, ready to encode rows: every part but a pool's and a residual network."""

    def __init__(self, data: TableData, threads: int = 1) -> None:
        """``data`` needs the arrays that all rows share. InputError where rows share what they are made of, so that none can be
        encoded alone.
        """
        table, arrays = data.table, data.arrays
        if table.kept is not None:
            raise InputError(
                f"table {table.name!r} keeps {table.num_kept:,} of its {table.num_embeddings:,} ids, and no bytes are there for others; "
                "compress the new dense table with its new frequencies"
            )
        if table.shared is not None or table.residual is not None or table.levels is not None:
            what = "values that all ids share" if table.shared is not None else "a network"
            what = "levels that were trained" if table.levels is not None else what
            raise InputError(
                f"rows of table {table.name!r} come from {what}, so single rows cannot be encoded; "
                "train it on, or compress the new dense table"
            )
        self.data, self.table, self.arrays, self.threads = data, table, arrays, threads
        self.bias = arrays["map.bias"] if table.map is not None and table.map.bias else np.float32(0)
        self.weight = np.ones(table.latent_dim)
        """(R,): what a latent entry's squared error costs in the row."""
        if table.map is not None:
            matrix = reference.linear_map(data)
            self.weight = np.maximum((matrix**2).sum(axis=1), TINY)
            self.map = matrix.astype(np.float32)
            self.inverse = np.linalg.pinv(matrix, rcond=RANK).astype(np.float32)
            if table.trellis is not None:
                self.inverse = _drawn_inverse(matrix)
                self._steps_inverse = _drawn_inverse(matrix[: table.trellis.entries])
        self.books = [book.astype(np.float32) for book in reference.codebooks(data)] if table.coded is not None else []
        self._search = self._stage_search()

    def with_threads(self, threads: int) -> StoredFit:
        """The same fit on another number of threads."""
        return StoredFit(self.data, threads)

    def _stage_search(self) -> Search | None:
        """The search for the codes of stages, whole rows each; None where chunks are searched one after the other."""
        coded = self.table.coded
        if coded is None or coded.row_scale or len({chunk.size for chunk in coded.chunks}) > 1:
            return None
        if any(chunk.start or chunk.bits != STAGE_BITS for chunk in coded.chunks):
            return None
        root = np.sqrt(self.weight[: coded.chunks[0].size]).astype(np.float32)
        return Search([book * root for book in self.books], beam_for(self.table), self.threads)

    def latent(self, rows: npt.NDArray[np.floating]) -> F32:
        """The latent entries (n, R) nearest to rows (n, D): what exact rows store."""
        moved: F32 = np.asarray(rows, dtype=np.float32) - self.bias
        found: F32 = moved if self.table.map is None else moved @ self.inverse
        return found

    def dense(self, latent: F32) -> F32:
        """Latent entries (n, R) as rows (n, D), by the stored map."""
        rows: F32 = latent if self.table.map is None else latent @ self.map + self.bias
        return rows

    def exact(self, rows: npt.NDArray[np.floating], bits: int) -> tuple[Array, Array, F32]:
        """Rows (n, D) as exact rows: their stored values, their scales, and what they read as.

        Raises:
            InputError: latent rows that are too large for the scale of an exact row.
        """
        values, scale = encode_values(self.latent(rows), bits)
        return values, scale, self.dense(_values(values, bits, self.table.latent_dim, scale[:, None]))

    def encode(self, rows: npt.NDArray[np.floating]) -> tuple[dict[str, Array], F32]:
        """The stored arrays of rows (n, D) that have one entry a row, and the rows as they will be looked up.

        Rings of a trellis come as single bits (n, row_bits), which the caller packs.
        """
        rows = np.asarray(rows, dtype=np.float32)
        rest = self.latent(rows)
        arrays: dict[str, Array] = {}
        found = np.zeros_like(rest) if self.table.coded is None else self._coded(rest, arrays)
        if self.table.coded is not None:
            rest = rest - found
        if (trellis := self.table.trellis) is not None:
            left = rows - self.bias - found @ self.map if trellis.norm_bits else rows  # only a factor looks at these
            named = self._rings(rest, left, arrays)
            found += named
            if self.table.private is not None:
                rest = rest - named
        if (private := self.table.private) is not None:
            scale = self.arrays.get("private.scale") if not private.row_scale else None
            values, scales = encode_values(rest[:, : private.dim], private.bits, scale)
            arrays["private.values"] = values
            if private.row_scale:
                arrays["private.scale"] = scales
            found[:, : private.dim] += _values(
                values, private.bits, private.dim, scales[:, None] if private.row_scale else scale
            )
        return arrays, self.dense(found)

    def _coded(self, latent: F32, arrays: dict[str, Array]) -> F32:
        """Codes of the nearest centroids, and the latent entries (n, R) that they stand for."""
        coded = self.table.coded
        assert coded is not None
        if self._search is not None:
            width = coded.chunks[0].size
            root = np.sqrt(self.weight[:width]).astype(np.float32)
            arrays["coded.codes"] = self._search.codes(latent[:, :width] * root)
            found = np.zeros_like(latent)
            found[:, :width] = decoded(arrays["coded.codes"], self.books)
            return found
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
        return (named * scale[:, None]).astype(np.float32)

    def _nearest(self, latent: F64) -> tuple[npt.NDArray[np.uint8], F64]:
        """Codes as single bits (n, code_bits), chunk after chunk, and what they name (n, R)."""
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

    def _rings(self, latent: F32, rows: F32, arrays: dict[str, Array]) -> F32:
        """Rings of bits, with the code of the factor, of rows (n, D) and their latent entries; what they stand for, (n, R)."""
        trellis = self.table.trellis
        assert trellis is not None
        steps, width = slice(0, trellis.entries), trellis.width
        target = latent[:, steps]
        if trellis.norm_bits:
            lengths = np.linalg.norm(rows, axis=1)
            unit = (rows / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
            if trellis.constant:
                unit = unit - self.map[trellis.entries]
            target = (unit @ self._steps_inverse).astype(np.float32)
        step = np.float32(FARTHEST / LARGEST[trellis.value_bits])
        values = self.arrays["trellis.values"].astype(np.float32)
        weight = self.weight[steps]
        states = encode_rings(target * step, trellis, values * step, weight / weight.mean(), self.threads)
        windows = windows_of(trellis)
        found = values[windows.book, states[:, windows.step]]
        if trellis.entries < latent.shape[1]:
            found = np.pad(found, ((0, 0), (0, latent.shape[1] - trellis.entries)))
        norms = None
        if trellis.norm_bits:
            if trellis.constant:
                found[:, trellis.entries] = 1
            norms = nearest_factors(rows, found @ self.map, self.arrays["trellis.norms"])
            found[:, :width] *= self.arrays["trellis.norms"][norms][:, None]
        arrays["trellis.codes"] = pack_rings(states, norms, trellis)
        return found


def nearest_factors(rows: F32, shapes: F32, norms: Array) -> npt.NDArray[np.uint8]:
    """For rows (n, D) that are a factor times their shape, the place of the factor that leaves the least error."""
    order = np.argsort(norms, kind="stable")
    length = (shapes**2).sum(axis=1)
    wanted = np.divide((rows * shapes).sum(axis=1), length, out=np.zeros_like(length), where=length > 0)
    wanted[~rows.any(axis=1)] = 0
    ascending = norms[order].astype(np.float64)
    return order[np.searchsorted((ascending[1:] + ascending[:-1]) / 2, wanted)].astype(np.uint8)


def _drawn_inverse(matrix: F64) -> F32:
    """(D, R): from rows to the latent entries whose rows by the map (R, D) are near, drawn to zero by RIDGE."""
    gram = matrix @ matrix.T
    gram[np.diag_indices_from(gram)] += max(RIDGE * float(np.trace(gram)) / len(gram), TINY)
    found: F32 = np.linalg.solve(gram, matrix).T.astype(np.float32)
    return found


def _values(stored: Array, bits: int, count: int, scale: Array | None) -> F32:
    """Stored values (n, ...) as floats (n, count)."""
    if bits >= 16 or scale is None:
        return stored.astype(np.float32)
    return (levels_from_codes(unpack(stored, count, bits), bits) * scale.astype(np.float32)).astype(np.float32)


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
