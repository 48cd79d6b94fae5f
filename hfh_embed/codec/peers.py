"""Peers of the codec, each at the largest size that fits a number of bytes: decoded rows and the bytes they take.

Codebooks and rotations of faiss' quantisers count as float16, which loses nothing that shows; a product quantiser may have any number
of parts, as rows are padded with zeros to a multiple of it. Codes have 8 bits. Training sees a sample of the rows (TRAINED_ON). Where
``ids`` are given, only their rows are encoded and returned; the bytes are the whole table's.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from hfh_embed.codec.codebooks import faiss_module
from hfh_embed.codec.transform import half_steps
from hfh_embed.layout import SnapshotSpec
from hfh_embed.lookup import Table
from hfh_embed.packing import levels_from_codes, round_to_codes
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import PrivateSpec, TableSpec

__all__ = ["PEERS", "Made", "dense_table", "product_parts"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Made = tuple[F32, int]
CODES = 256
TRAINED_ON = {"faiss PQ": 65_536, "faiss OPQ": 10_000, "faiss RQ": 20_000, "faiss LSQ": 5_000}


def dense_table(rows: F32) -> Table:
    """Decoded rows (N, D) as a table, for fidelity.compare."""
    n, dim = rows.shape
    spec = SnapshotSpec((TableSpec("table", n, dim, private=PrivateSpec(dim, 32)),))
    return Snapshot(spec, {"table/table/private.values": np.ascontiguousarray(rows, dtype=np.float32)})["table"]


def _sample(rows: F32, method: str) -> F32:
    count = min(len(rows), TRAINED_ON[method])
    return np.ascontiguousarray(rows[np.random.default_rng(0).choice(len(rows), count, replace=False)])


def product_parts(n: int, dim: int, budget: int) -> int:
    """The most parts of a product quantiser that fit; 0 where none does."""
    fits = [m for m in range(1, dim + 1) if n * m + 2 * CODES * (dim + -dim % m) <= budget]
    return max(fits, default=0)


def _padded(rows: F32, parts: int) -> F32:
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, -rows.shape[1] % parts))))


def product(rows: F32, budget: int, ids: I64 | None = None) -> Made | None:
    """faiss' product quantiser."""
    n, dim = rows.shape
    parts = product_parts(n, dim, budget)
    if not parts:
        return None
    wide = _padded(rows, parts)
    quantiser = faiss_module().ProductQuantizer(wide.shape[1], parts, 8)
    quantiser.train(_sample(wide, "faiss PQ"))
    wide = wide if ids is None else wide[ids]
    return quantiser.decode(quantiser.compute_codes(wide))[:, :dim], n * parts + 2 * CODES * wide.shape[1]


def rotated_product(rows: F32, budget: int, ids: I64 | None = None) -> Made | None:
    """The same after a fitted rotation."""
    n, dim = rows.shape
    parts = product_parts(n, dim, budget - 2 * dim * dim)
    if not parts:
        return None
    wide = _padded(rows, parts)
    size = wide.shape[1]
    faiss = faiss_module()
    rotation = faiss.OPQMatrix(size, parts)
    rotation.niter, rotation.niter_pq, rotation.niter_pq_0 = 12, 4, 10
    rotation.train(_sample(wide, "faiss OPQ"))
    quantiser = faiss.ProductQuantizer(size, parts, 8)
    quantiser.train(rotation.apply(_sample(wide, "faiss PQ")))
    turned = rotation.apply(wide if ids is None else wide[ids])
    decoded = rotation.reverse_transform(quantiser.decode(quantiser.compute_codes(turned)))
    return decoded[:, :dim], n * parts + 2 * CODES * size + 2 * dim * dim


def _additive(rows: F32, budget: int, ids: I64 | None, method: str) -> Made | None:
    n, dim = rows.shape
    stages = budget // (n + 2 * CODES * dim)
    if not stages:
        return None
    faiss = faiss_module()
    kind = faiss.ResidualQuantizer if method == "faiss RQ" else faiss.LocalSearchQuantizer
    quantiser = kind(dim, int(stages), 8)
    if method == "faiss RQ":
        quantiser.max_beam_size = 4
    quantiser.train(_sample(rows, method))
    rows = rows if ids is None else np.ascontiguousarray(rows[ids])
    return quantiser.decode(quantiser.compute_codes(rows)), n * stages + 2 * CODES * dim * stages


def few_bits(rows: F32, budget: int, ids: I64 | None = None) -> Made | None:
    """Rows of 1 to 8 bits an entry, with a float16 scale a row."""
    n, dim = rows.shape
    sizes = {bits: n * (-(-dim * bits // 8) + 2) for bits in range(1, 9)}
    fits = [bits for bits, size in sizes.items() if size <= budget]
    if not fits:
        return None
    rows = rows if ids is None else rows[ids]
    scale = half_steps(rows, fits[-1]).astype(np.float16).astype(np.float64)[:, None]
    decoded = levels_from_codes(round_to_codes(rows, scale, fits[-1]), fits[-1]) * scale
    return decoded.astype(np.float32), sizes[fits[-1]]


class _Peer(Protocol):
    def __call__(self, rows: F32, budget: int, ids: I64 | None = None) -> Made | None: ...


PEERS: dict[str, _Peer] = {
    "faiss PQ": product,
    "faiss OPQ": rotated_product,
    "faiss RQ": lambda rows, budget, ids=None: _additive(rows, budget, ids, "faiss RQ"),
    "faiss LSQ": lambda rows, budget, ids=None: _additive(rows, budget, ids, "faiss LSQ"),
    "few-bit rows": few_bits,
}
