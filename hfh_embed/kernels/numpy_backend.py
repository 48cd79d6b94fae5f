"""The method in vectorised float32 numpy, in blocks of ids that keep temporary memory small. The float64 definition is reference.py."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.hashing import addresses
from hfh_embed.kernels import Mode
from hfh_embed.layout import Array, TableData
from hfh_embed.level_index import BLOCK_IDS, LevelPlaces
from hfh_embed.packing import levels_from_codes, packed_bytes, unpack
from hfh_embed.spec import Level, LevelIndex, MapSpec, PrivateRole, Reconstruction, Unknown
from hfh_embed.windows import Windows, windows_of

__all__ = ["NumpyKernel", "level_maps", "map_matrix", "map_of_bands"]

BLOCK_ENTRIES = 2**20
"""Entries of the largest temporary array of a block; some eight bytes each, a few at a time."""

F32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class NumpyKernel:
    """See :class:`hfh_embed.kernels.Kernel`."""

    def __init__(self, data: TableData) -> None:
        self._data = data
        table = data.table
        widest = max(table.latent_dim, table.embedding_dim, table.residual.hidden if table.residual else 0)
        if table.shared is not None and data.pool is not None:
            entries = table.shared.num_chunks * table.shared.chunk_size
            widest = max(widest, entries * max(table.shared.num_hashes, data.pool.hidden))
        if table.levels is not None and table.levels.index is LevelIndex.CODES:
            widest = max(widest, BLOCK_IDS)
        self._block = max(1, BLOCK_ENTRIES // widest)

    def lookup(self, ids: Any, dtype: Any, num_threads: int = 1) -> npt.NDArray[Any] | None:
        return None

    def plain_bag(
        self, ids: Any, offsets: Any, weights: Any, mode: Mode, dtype: Any, num_threads: int = 1
    ) -> npt.NDArray[Any] | None:
        return None

    def rows(self, ids: Ids, out: npt.NDArray[Any], num_threads: int = 1) -> int:
        refused = self._refused(ids)
        if refused < 0:
            for start in range(0, len(ids), self._block):
                _store(out[start : start + self._block], self._rows(ids[start : start + self._block]))
        return refused

    def bag(
        self,
        ids: Ids,
        bounds: Ids,
        weights: F32 | None,
        mode: Mode,
        out: npt.NDArray[Any],
        num_threads: int = 1,
    ) -> int:
        used = ids[bounds[0] : bounds[-1]]
        refused = self._refused(used)
        if refused >= 0:
            return refused + int(bounds[0])
        owner = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        weights = None if weights is None else weights[bounds[0] : bounds[-1]]
        if (padding := self._data.table.padding_id) is not None:
            counted = used != padding
            used, owner, weights = used[counted], owner[counted], None if weights is None else weights[counted]
        total = np.full(out.shape, -np.inf if mode == "max" else 0, dtype=np.float32)
        combine = np.maximum if mode == "max" else np.add
        for start in range(0, len(used), self._block):
            part = slice(start, start + self._block)
            rows = self._rows(used[part])
            if weights is not None:
                rows *= weights[part, None]
            bags, first = np.unique(owner[part], return_index=True)
            total[bags] = combine(total[bags], combine.reduceat(rows, first, axis=0))
        counts = np.bincount(owner, minlength=len(out))
        if mode == "mean":
            total /= np.maximum(counts, 1).astype(np.float32)[:, None]
        total[counts == 0] = 0
        _store(out, total)
        return -1

    def _refused(self, ids: Ids) -> int:
        """Position of the first id that gets no row, or -1."""
        if not len(ids):
            return -1
        wrong = ids < 0
        if self._data.table.unknown is Unknown.ERROR:
            wrong |= ids >= self._data.table.num_embeddings
        return int(wrong.argmax()) if wrong.any() else -1

    def _rows(self, ids: Ids) -> F32:
        """reference.rows of one block."""
        data, table = self._data, self._data.table
        known = ids < table.num_embeddings
        e = self._latent(ids, known)
        if table.map is not None:
            e = e @ self.map
            if table.map.bias:
                e += data.arrays["map.bias"]
        return self._finished(e, ids)

    def _finished(self, e: F32, ids: Ids) -> F32:
        """Rows with the residual network's part; zero where the table says so."""
        data, table = self._data, self._data.table
        if table.residual is not None:
            w1, b1, w2, b2 = (data.arrays[f"residual.{key}"] for key in ("w1", "b1", "w2", "b2"))
            e = e + (np.maximum(e @ w1 + b1, 0) @ w2 + b2)
        if table.unknown is Unknown.ZERO:
            e[ids >= table.num_embeddings] = 0
        if table.padding_id is not None:
            e[ids == table.padding_id] = 0
        return e

    def _latent(self, ids: Ids, known: npt.NDArray[np.bool_]) -> F32:
        table, arrays = self._data.table, self._data.arrays
        stored = ids if known.all() else np.where(known, ids, 0)
        z: F32 = np.zeros((len(ids), table.latent_dim), dtype=np.float32)
        weights = None
        if (private := table.private) is not None:
            own = _values(arrays["private.values"][stored], private.bits, private.dim)
            if private.bits <= 8:
                scale = arrays["private.scale"]
                own = own * (scale[stored].astype(np.float32)[:, None] if private.row_scale else scale[0])
            if private.role is PrivateRole.WEIGH:
                own[~known] = 1
                weights = own
            else:
                own[~known] = 0
                z[:, : private.dim] = own
        if table.shared is not None:
            z[:, table.latent_dim - table.shared.dim :] += self._shared(ids, weights)
        if table.coded is not None:
            z += self._coded(stored) * known[:, None]
        if table.trellis is not None:
            z[:, : table.trellis.width] += self._trellis(stored) * known[:, None]
        if table.exact is not None:
            places, hit = self._exact(ids)
            values = _values(arrays["exact.values"][places], table.exact.bits, table.latent_dim)
            if table.exact.bits <= 8:
                values = values * arrays["exact.scale"][places].astype(np.float32)[:, None]
            z[hit] = values
        if table.levels is not None:
            found, level_place = self._places.find(np.where(known, ids, -1))
            for number, level in enumerate(table.levels.each):
                mine = found == number
                if not mine.any():
                    continue
                own_rows = self._level(number, level, level_place[mine])
                z[mine] = z[mine] + own_rows if table.levels.adds else own_rows
        return z

    def _level(self, number: int, level: Level, places: Ids) -> F32:
        """Latent rows of a level, at some places."""
        arrays, name = self._data.arrays, f"level{number}"
        values = _values(arrays[f"{name}.values"][places], level.bits, level.dim)
        if level.bits <= 8:
            values = values * arrays[f"{name}.scale"][0]
        linear = self.level_maps[number]
        return values if linear is None else values @ linear

    @functools.cached_property
    def _places(self) -> LevelPlaces:
        return LevelPlaces(self._data.table, self._data.arrays)

    @functools.cached_property
    def level_maps(self) -> list[F32 | None]:
        """The map of each level that has one, (dim, R) float32, made at the first lookup."""
        return level_maps(self._data)

    def _shared(self, ids: Ids, weights: F32 | None) -> F32:
        shared, pool, arrays = self._data.table.shared, self._data.pool, self._data.arrays
        assert shared is not None and pool is not None
        where = addresses(shared, pool, ids)
        fetched = _gather(arrays["pool.values"], where.slots(shared.chunk_size), pool.bits)  # (B, C, U, Z)
        if shared.signs:
            np.negative(fetched, out=fetched, where=where.negative[..., None])
        scale = arrays["shared.scale"][0]
        if pool.reconstruction is Reconstruction.SUM:
            if weights is not None:
                fetched = fetched * weights[:, None, :, None]
            summed = fetched.sum(axis=2, dtype=np.int32 if fetched.dtype.kind == "i" else np.float32)
            entries = summed.reshape(len(ids), -1)[:, : shared.dim].astype(np.float32, copy=False)
            return entries * scale
        v = fetched.astype(np.float32, copy=False).transpose(0, 1, 3, 2).reshape(len(ids), -1, shared.num_hashes)
        v = v[:, : shared.dim]
        if weights is not None:
            v = v * weights[:, None, :]
        if pool.reconstruction is Reconstruction.BILINEAR:
            g: F32 = v @ arrays["pool.linear"] + ((v @ arrays["pool.quadratic"]) * v).sum(axis=-1)
        else:
            g = np.tanh(v @ arrays["pool.w1"] + arrays["pool.b1"]) @ arrays["pool.w2"] + arrays["pool.b2"]
        return g * scale

    def _coded(self, ids: Ids) -> F32:
        table, arrays, coded = self._data.table, self._data.arrays, self._data.table.coded
        assert coded is not None
        z: F32 = np.zeros((len(ids), table.latent_dim), dtype=np.float32)
        packed = arrays["coded.codes"][ids].astype(np.uint32)
        packed = np.concatenate(
            (packed, np.zeros((len(ids), 2), dtype=np.uint32)), axis=1
        )  # a code may end in byte + 2
        bit = 0
        for chunk, codebook in zip(coded.chunks, self.codebooks, strict=True):
            byte, shift = divmod(bit, 8)
            word = packed[:, byte] | packed[:, byte + 1] << np.uint32(8) | packed[:, byte + 2] << np.uint32(16)
            codes = (word >> np.uint32(shift)) & np.uint32((1 << chunk.bits) - 1)
            z[:, chunk.start : chunk.start + chunk.size] += codebook[codes]
            bit += chunk.bits
        if coded.row_scale:
            z *= arrays["coded.row_scale"][ids].astype(np.float32)[:, None]
        return z

    @functools.cached_property
    def codebooks(self) -> list[F32]:
        """Each codebook as (2**bits, size) float32, made at the first lookup."""
        coded, arrays = self._data.table.coded, self._data.arrays
        assert coded is not None
        values = _values(arrays["coded.codebooks"], coded.codebook_bits, coded.codebook_values)
        books, first = [], 0
        for number, chunk in enumerate(coded.chunks):
            book = values[first : first + (chunk.size << chunk.bits)].reshape(-1, chunk.size)
            if coded.codebook_bits <= 8:
                book = book * arrays["coded.codebook_scales"][number]
            books.append(book)
            first += chunk.size << chunk.bits
        return books

    def _trellis(self, ids: Ids) -> F32:
        arrays, trellis = self._data.arrays, self._data.table.trellis
        assert trellis is not None
        states = self._windows.states(arrays["trellis.codes"], ids, trellis)
        z = np.ones((len(ids), trellis.width), dtype=np.float32)
        z[:, : trellis.entries] = arrays["trellis.values"][self._windows.book, states]
        if trellis.norm_bits:
            z *= arrays["trellis.norms"][self._windows.norms(arrays["trellis.codes"], ids, trellis)][:, None]
        return z

    @functools.cached_property
    def _windows(self) -> Windows:
        assert self._data.table.trellis is not None
        return windows_of(self._data.table.trellis)

    @functools.cached_property
    def map(self) -> F32:
        """The linear map as (R, D) float32, made at the first lookup."""
        matrix = map_matrix(self._data)
        assert matrix is not None
        return matrix

    def _exact(self, ids: Ids) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Places of the exact rows among the ids, and which ids have one."""
        own = self._data.arrays["exact.ids"]
        places = np.minimum(np.searchsorted(own, ids), len(own) - 1)
        hit = own[places] == ids
        return places[hit], hit


def level_maps(data: TableData) -> list[F32 | None]:
    """The map of each level, (dim, R) float32; None for a level of full width."""
    levels, latent = data.table.levels, data.table.latent_dim
    maps: list[F32 | None] = []
    for number, level in enumerate(levels.each if levels is not None else ()):
        whole = level.dim == latent
        maps.append(None if whole else _matrix(data.arrays, f"level{number}.map", level.map_bits, latent))
    return maps


def map_matrix(data: TableData) -> F32 | None:
    """The linear map as (R, D) float32, None for a table without one."""
    table, arrays = data.table, data.arrays
    if table.map is None:
        return None
    if table.map.bands:
        banded: F32 = map_of_bands(arrays["map.values"], table.map, table.embedding_dim)
        return np.ascontiguousarray(banded * arrays["map.scale"][:, None])
    return _matrix(arrays, "map", table.map.bits, table.embedding_dim)


def _matrix(arrays: Mapping[str, Array], name: str, bits: int, columns: int) -> F32:
    """A stored map as (rows, columns) float32."""
    values = _values(arrays[f"{name}.values"], bits, columns)
    if bits <= 8:
        values = values * arrays[f"{name}.scale"].astype(np.float32)[:, None]
    return np.ascontiguousarray(values)


def _values(stored: Array, bits: int, count: int) -> F32:
    """Stored values (..., count) as float32: levels where they are few-bit."""
    if bits >= 16:
        return stored.astype(np.float32)
    return levels_from_codes(unpack(stored, count, bits), bits).astype(np.float32)


def map_of_bands(stored: Array, linear: MapSpec, dim: int) -> F32:
    """The levels of a map whose rows have several numbers of bits, (R, D) float32."""
    rows, first = [], 0
    for band in linear.bands:
        last = first + band.rows * packed_bytes(dim, band.bits)
        rows.append(_values(stored[first:last].reshape(band.rows, -1), band.bits, dim))
        first = last
    return np.concatenate(rows)


def _gather(pool: Array, slots: Ids, bits: int) -> npt.NDArray[Any]:
    """The pool's values in these slots, same shape: float32, or levels as int16."""
    if bits >= 16:
        return pool[slots].astype(np.float32, copy=False)
    per_byte = 8 // bits
    shift = (slots % per_byte * bits).astype(np.uint8)
    codes = (pool[slots // per_byte] >> shift) & np.uint8(2**bits - 1)
    return 2 * codes.astype(np.int16) - np.int16(2**bits - 1)


def _store(out: npt.NDArray[Any], rows: F32) -> None:
    """Copy into the output's dtype; what float16 cannot hold becomes infinite, as IEEE says."""
    with np.errstate(over="ignore"):
        out[...] = rows
