"""Codebooks: k-means on each chunk of the latent rows, stored in few bits, and the nearest code of every row.

Product quantisation: Jegou, Douze and Schmid, "Product quantization for nearest neighbor search", PAMI 2011; the k-means
and the nearest-neighbour search are faiss'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt

from hfh_embed.codec.transform import half_steps
from hfh_embed.errors import MissingDependencyError
from hfh_embed.layout import Array
from hfh_embed.packing import levels_from_codes, pack, round_to_codes
from hfh_embed.spec import CodeChunk, CodedSpec

__all__ = ["Codebooks", "encode", "fit_codebooks", "pack_codes"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
KMEANS_STEPS = 20
KMEANS_POINTS = 2**16


@dataclass(frozen=True)
class Codebooks:
    """One codebook (2**bits, size) a chunk, as lookups will see it after storing, and the arrays that store them."""

    spec: CodedSpec
    books: list[F32]
    arrays: dict[str, Array]


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError:
        raise MissingDependencyError(
            "compressing a table needs faiss; install it with: pip install 'hfh-embed[compress]'"
        ) from None
    module: ModuleType = faiss
    return module


def fit_codebooks(
    latent: F32,
    weights: F64,
    chunks: tuple[CodeChunk, ...],
    codebook_bits: int,
    seed: int,
    row_scale: bool,
    progress: Callable[[int, int, str], None],
) -> Codebooks:
    """Fit one codebook for each chunk to latent rows (n, R), weighted, and round it to ``codebook_bits``."""
    faiss = _faiss()
    generator = np.random.default_rng(seed)
    books = []
    for number, chunk in enumerate(chunks):
        points = np.ascontiguousarray(latent[:, chunk.start : chunk.start + chunk.size])
        books.append(_kmeans(faiss, points, weights, 1 << chunk.bits, generator, seed + number))
        progress(number + 1, len(chunks), "fit codebooks")
    spec = CodedSpec(chunks, codebook_bits, row_scale)
    if codebook_bits >= 16:
        dtype = np.float16 if codebook_bits == 16 else np.float32
        stored = np.concatenate([book.reshape(-1) for book in books]).astype(dtype)
        return Codebooks(spec, [book.astype(dtype).astype(np.float32) for book in books], {"coded.codebooks": stored})
    scales = np.concatenate([half_steps(book.reshape(1, -1), codebook_bits) for book in books])
    codes = [round_to_codes(book, np.float64(scale), codebook_bits) for book, scale in zip(books, scales, strict=True)]
    rounded = [
        levels_from_codes(code, codebook_bits).astype(np.float32) * scale
        for code, scale in zip(codes, scales, strict=True)
    ]
    packed = pack(np.concatenate([code.reshape(-1) for code in codes]), codebook_bits)
    return Codebooks(spec, rounded, {"coded.codebooks": packed, "coded.codebook_scales": scales})


def _kmeans(faiss: ModuleType, points: F32, weights: F64, count: int, generator: np.random.Generator, seed: int) -> F32:
    """Centroids (count, size) of points (n, size); points there are fewer of than centroids are kept as they are."""
    if len(points) > KMEANS_POINTS:
        kept = np.sort(generator.choice(len(points), KMEANS_POINTS, replace=False))
        points, weights = points[kept], weights[kept]
    distinct = np.unique(points, axis=0)
    if len(distinct) <= count:
        return np.concatenate((distinct, np.repeat(distinct[:1], count - len(distinct), axis=0)))
    if points.shape[1] == 1:
        return _kmeans_1d(points[:, 0].astype(np.float64), weights, count)
    kmeans = faiss.Kmeans(
        points.shape[1], count, niter=KMEANS_STEPS, seed=seed, min_points_per_centroid=1, max_points_per_centroid=2**30
    )
    kmeans.train(points, weights=weights.astype(np.float32))
    centroids: F32 = kmeans.centroids
    return centroids


def _kmeans_1d(points: F64, weights: F64, count: int) -> F32:
    """Lloyd's method on sorted numbers, begun at equal shares of the distribution."""
    order = np.argsort(points)
    points, weights = points[order], weights[order]
    mass, moment = np.cumsum(weights), np.cumsum(weights * points)
    places = np.searchsorted(mass, (np.arange(count) + 0.5) / count * mass[-1])
    centroids = points[np.minimum(places, len(points) - 1)]
    for _ in range(3 * KMEANS_STEPS):
        edges = np.searchsorted(points, (centroids[1:] + centroids[:-1]) / 2)
        ends = np.concatenate((edges, [len(points)])) - 1
        total = np.diff(np.where(ends >= 0, mass[ends], 0), prepend=0)
        sums = np.diff(np.where(ends >= 0, moment[ends], 0), prepend=0)
        centroids = np.sort(np.where(total > 0, sums / np.maximum(total, 1e-300), centroids))
    return centroids.astype(np.float32)[:, None]


def encode(latent: F32, codebooks: Codebooks) -> tuple[npt.NDArray[np.uint16], F32]:
    """The nearest code of each chunk, (n, chunks), and the latent rows (n, R) that they stand for."""
    faiss = _faiss()
    codes = np.empty((len(latent), len(codebooks.books)), dtype=np.uint16)
    decoded = np.zeros_like(latent)
    for number, (chunk, book) in enumerate(zip(codebooks.spec.chunks, codebooks.books, strict=True)):
        span = slice(chunk.start, chunk.start + chunk.size)
        if chunk.size == 1:
            order = np.argsort(book[:, 0], kind="stable")
            middles = (book[order[1:], 0] + book[order[:-1], 0]) / 2
            codes[:, number] = order[np.searchsorted(middles, latent[:, chunk.start])]
        else:
            _, nearest = faiss.knn(np.ascontiguousarray(latent[:, span]), book, 1)
            codes[:, number] = nearest[:, 0]
        decoded[:, span] += book[codes[:, number]]
    return codes, decoded


def pack_codes(codes: npt.NDArray[np.uint16], chunks: tuple[CodeChunk, ...]) -> npt.NDArray[np.uint8]:
    """The codes of each row, one after the other, lowest bit first, as whole bytes."""
    planes = [
        (codes[:, number, None] >> np.arange(chunk.bits, dtype=np.uint16)) & np.uint16(1)
        for number, chunk in enumerate(chunks)
    ]
    return np.packbits(np.concatenate(planes, axis=1).astype(np.uint8), axis=1, bitorder="little")
