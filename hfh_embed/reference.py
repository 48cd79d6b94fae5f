"""The method in plain float64 numpy: the definition that every backend is held to.

Homologically Functional Hashing (arXiv 1605.06560, section 3): several hash functions fetch values from one pool that
all tables share, and a small reconstruction turns them into entries. This module favours being obviously right over
everything else; ``kernels`` has the same functions, faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import UnknownIdError
from hfh_embed.hashing import Addresses, addresses
from hfh_embed.layout import Array, TableData
from hfh_embed.packing import levels_from_codes, packed_bytes, unpack
from hfh_embed.spec import LevelIndex, PrivateRole, Reconstruction, Unknown

__all__ = ["bag", "codebooks", "fetch", "latent", "level_places", "linear_map", "rows"]

F64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def rows(data: TableData, ids: Ids) -> F64:
    """The rows of B ids, (B, D) float64: spec.py's formula, then the padding id and the ids outside the table."""
    table = data.table
    if ids.size and int(ids.min()) < 0:
        raise UnknownIdError(f"id {ids.min()} is negative; ids are integers from 0")
    known = ids < table.num_embeddings
    if table.unknown is Unknown.ERROR and not known.all():
        raise UnknownIdError(
            f"id {ids[~known][0]} is outside table {table.name!r}, which has ids 0 to {table.num_embeddings - 1}"
        )
    if table.kept is not None:
        return _kept_rows(data, ids)
    e = latent(data, ids)
    if table.map is not None:
        e = e @ linear_map(data)
        if table.map.bias:
            e = e + data.arrays["map.bias"].astype(np.float64)
    if table.residual is not None:
        w1, b1, w2, b2 = (data.arrays[f"residual.{key}"].astype(np.float64) for key in ("w1", "b1", "w2", "b2"))
        e = e + np.maximum(e @ w1 + b1, 0) @ w2 + b2
    if table.unknown is Unknown.ZERO:
        e[~known] = 0
    if table.padding_id is not None:
        e[ids == table.padding_id] = 0
    return e


def _kept_rows(data: TableData, ids: Ids) -> F64:
    """The rows of ids of a table that keeps only some of them."""
    table = data.table
    kept = unpack(data.arrays["kept.bits"], table.num_embeddings, 1).astype(bool)
    own = ids < table.num_embeddings
    own[own] = kept[ids[own]]
    if table.padding_id is not None:
        own &= ids != table.padding_id
    e = np.zeros((len(ids), table.embedding_dim))
    places = np.cumsum(kept) - 1
    e[own] = rows(TableData(table.inner, data.pool, data.arrays), places[ids[own]])
    return e


def latent(data: TableData, ids: Ids) -> F64:
    """z of B ids, (B, R) float64. An id outside the table has no coefficients of its own: its z is the shared part."""
    table, arrays = data.table, data.arrays
    known = ids < table.num_embeddings
    stored = np.where(known, ids, 0)  # any row will do where the part is masked below
    z = np.zeros((len(ids), table.latent_dim))
    coefficients = None
    if table.private is not None:
        coefficients = _scaled(arrays, "private", table.private.bits, table.private.dim, stored)
        coefficients[~known] = 1.0 if table.private.role is PrivateRole.WEIGH else 0.0
        if table.private.role is PrivateRole.ADD:
            z[:, : table.private.dim] += coefficients
            coefficients = None
    if table.shared is not None:
        z[:, table.latent_dim - table.shared.dim :] += _shared(data, ids, coefficients)
    if table.coded is not None:
        z += _coded(data, stored) * known[:, None]
    if table.trellis is not None:
        z[:, : table.trellis.width] += _trellis(data, stored) * known[:, None]
    if table.exact is not None:
        values = _scaled(arrays, "exact", table.exact.bits, table.latent_dim)
        for position, id_ in enumerate(arrays["exact.ids"].astype(np.int64)):
            z[ids == id_] = values[position]
    if table.levels is not None:
        found, place = level_places(data, np.where(known, ids, -1))
        for number, level in enumerate(table.levels.each):
            mine = found == number
            own = _scaled(arrays, f"level{number}", level.bits, level.dim, place[mine])
            if level.dim < table.latent_dim:
                own = own @ _scaled(arrays, f"level{number}.map", level.map_bits, table.latent_dim)
            z[mine] = z[mine] + own if table.levels.adds else own
    return z


def level_places(data: TableData, ids: Ids) -> tuple[Ids, Ids]:
    """The level of each id, -1 for none, and its place in that level: the ids of a level are counted in ascending order."""
    levels, n = data.table.levels, data.table.num_embeddings
    assert levels is not None
    members = []
    first = 0
    for number, level in enumerate(levels.each):
        match levels.index:
            case LevelIndex.FIRST:
                members.append(np.arange(first, first + level.count))
            case LevelIndex.IDS:
                members.append(data.arrays["levels.ids"][first : first + level.count].astype(np.int64))
            case LevelIndex.CODES:
                codes = unpack(data.arrays["levels.codes"], n, levels.code_bits(n))
                members.append(np.flatnonzero(codes == number + (levels.count < n))[: level.count])
        first += level.count
    found, place = np.full(len(ids), -1), np.zeros(len(ids), dtype=np.int64)
    for number, own in enumerate(members):
        for position, id_ in enumerate(ids.tolist()):
            if len(hits := np.flatnonzero(own == id_)):
                found[position], place[position] = number, hits[0]
    return found, place


def fetch(data: TableData, ids: Ids) -> tuple[F64, Addresses]:
    """The U signed values behind every entry of the shared part: (B, dim, U) float64, and their addresses."""
    shared, pool = data.table.shared, data.pool
    assert shared is not None and pool is not None
    where = addresses(shared, pool, ids)
    values = _stored(data.arrays["pool.values"], pool.bits, pool.slots)
    fetched = values[where.slots(shared.chunk_size)]  # (B, C, U, Z)
    fetched = np.where(where.negative[..., None], -fetched, fetched)
    entries = fetched.transpose(0, 1, 3, 2).reshape(len(ids), shared.num_chunks * shared.chunk_size, shared.num_hashes)
    return entries[:, : shared.dim], where


def _shared(data: TableData, ids: Ids, weights: F64 | None) -> F64:
    """scale * g(fetched values), (B, dim); ``weights`` (B, U) multiply what each hash function fetched."""
    assert data.pool is not None
    entries: F64
    v, _ = fetch(data, ids)
    if weights is not None:
        v = v * weights[:, None, :]
    network = {k: a.astype(np.float64) for k, a in data.arrays.items() if k.startswith("pool.") and k != "pool.values"}
    match data.pool.reconstruction:
        case Reconstruction.SUM:
            entries = v.sum(axis=-1)
        case Reconstruction.BILINEAR:
            entries = v @ network["pool.linear"] + np.einsum("beu,uw,bew->be", v, network["pool.quadratic"], v)
        case Reconstruction.MLP:
            hidden = np.tanh(v @ network["pool.w1"] + network["pool.b1"])
            entries = hidden @ network["pool.w2"] + network["pool.b2"]
    return entries * float(data.arrays["shared.scale"][0])


def _coded(data: TableData, ids: Ids) -> F64:
    """The sum of what each id's codes name, (B, R)."""
    table, arrays, coded = data.table, data.arrays, data.table.coded
    assert coded is not None
    z = np.zeros((len(ids), table.latent_dim))
    bits = np.unpackbits(arrays["coded.codes"][ids], axis=1, bitorder="little").astype(np.int64)
    first_bit = 0
    for chunk, codebook in zip(coded.chunks, codebooks(data), strict=True):
        codes = bits[:, first_bit : first_bit + chunk.bits] @ (1 << np.arange(chunk.bits))
        z[:, chunk.start : chunk.start + chunk.size] += codebook[codes]
        first_bit += chunk.bits
    if coded.row_scale:
        z *= arrays["coded.row_scale"][ids].astype(np.float64)[:, None]
    return z


def codebooks(data: TableData) -> list[F64]:
    """The codebook of each chunk of a coded table, (2**bits, size)."""
    arrays, coded = data.arrays, data.table.coded
    assert coded is not None
    values = _stored(arrays["coded.codebooks"], coded.codebook_bits, coded.codebook_values)
    books, first = [], 0
    for number, chunk in enumerate(coded.chunks):
        book = values[first : first + (chunk.size << chunk.bits)].reshape(-1, chunk.size)
        books.append(book * float(arrays["coded.codebook_scales"][number]) if coded.codebook_bits <= 8 else book)
        first += chunk.size << chunk.bits
    return books


def _trellis(data: TableData, ids: Ids) -> F64:
    """What the windows of each id's ring name, times the id's factor, (B, trellis.width)."""
    arrays, trellis = data.arrays, data.table.trellis
    assert trellis is not None
    stream = np.unpackbits(arrays["trellis.codes"], bitorder="little")
    z = np.ones((len(ids), trellis.width))
    for row, id_ in zip(z, ids.tolist(), strict=True):
        bits = stream[id_ * trellis.row_bits : (id_ + 1) * trellis.row_bits].astype(np.int64)
        ring = bits[trellis.norm_bits :]
        entry, book, place = 0, 0, trellis.ring_bits
        for run in trellis.runs:
            for _ in range(run.steps):
                place -= run.bits  # the newest bits of a step lie lowest, and later steps lie before earlier ones
                window = ring[(place + np.arange(trellis.state_bits)) % trellis.ring_bits]
                state = int(window @ (1 << np.arange(trellis.state_bits)))
                row[entry : entry + run.entries] = arrays["trellis.values"][book : book + run.entries, state]
                entry += run.entries
            book += run.entries
        if trellis.norm_bits:
            row *= float(arrays["trellis.norms"][bits[: trellis.norm_bits] @ (1 << np.arange(trellis.norm_bits))])
    return z


def linear_map(data: TableData) -> F64:
    """The map of a table that has one, (R, D)."""
    linear, dim = data.table.map, data.table.embedding_dim
    assert linear is not None
    if not linear.bands:
        return _scaled(data.arrays, "map", linear.bits, dim)
    rows, first = [], 0
    for band in linear.bands:
        last = first + band.rows * packed_bytes(dim, band.bits)
        rows.append(_stored(data.arrays["map.values"][first:last].reshape(band.rows, -1), band.bits, dim))
        first = last
    return np.concatenate(rows) * data.arrays["map.scale"].astype(np.float64)[:, None]


def _stored(array: Array, bits: int, count: int) -> F64:
    """Stored values (..., count) as float64: levels where they are few-bit."""
    if bits >= 16:
        return array.astype(np.float64)
    return levels_from_codes(unpack(array.astype(np.uint8), count, bits), bits).astype(np.float64)


def _scaled(arrays: Mapping[str, Array], part: str, bits: int, count: int, rows: Ids | slice = slice(None)) -> F64:
    """Rows of a part's values times their scale, (B, count)."""
    values = _stored(arrays[f"{part}.values"][rows], bits, count)
    if bits <= 8:
        scale = arrays[f"{part}.scale"].astype(np.float64)
        values = values * (scale if scale.shape == (1,) else scale[rows, None])
    return values


def bag(
    data: TableData,
    ids: Ids,
    offsets: Ids,
    mode: Literal["sum", "mean", "max"] = "mean",
    per_sample_weights: npt.NDArray[np.floating] | None = None,
    include_last_offset: bool = False,
) -> F64:
    """What ``torch.nn.functional.embedding_bag`` gives on the rows: (number of bags, D) float64.

    Ids equal to the table's padding id do not count, an empty bag is a row of zeros, ``max`` of a bag is taken entry by entry.
    """
    ends = offsets[1:] if include_last_offset else np.append(offsets[1:], len(ids))
    starts = offsets[:-1] if include_last_offset else offsets
    values = rows(data, ids)
    if per_sample_weights is not None:
        values = values * per_sample_weights[:, None].astype(np.float64)
    out = np.zeros((len(starts), data.table.embedding_dim))
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        members = values[start:end][ids[start:end] != data.table.padding_id]
        if len(members):
            out[number] = {"sum": members.sum(0), "mean": members.mean(0), "max": members.max(0)}[mode]
    return out
