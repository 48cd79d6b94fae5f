"""Stages of whole-row codebooks (k-means of the rows, then of what it leaves): what clustered tables begin with.

The k-means is faiss'. Centroids are stored in few bits with one scale a stage, in the unit of each latent entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import MissingDependencyError
from hfh_embed.layout import Array
from hfh_embed.packing import levels_from_codes, pack, round_to_codes

__all__ = ["STAGE_BITS", "STAGE_CODES", "Stages", "faiss_module", "kmeans", "kmeans_1d", "nearest"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
STAGE_BITS = 8
STAGE_CODES = 1 << STAGE_BITS
KMEANS_STEPS = 12


def faiss_module() -> ModuleType:
    """faiss, or MissingDependencyError that says how to install it."""
    try:
        import faiss
    except ImportError:
        raise MissingDependencyError(
            "compressing a table needs faiss; install it with: pip install 'hfh-embed[compress]'"
        ) from None
    module: ModuleType = faiss
    return module


def kmeans(points: F32, weights: F64, seed: int) -> F32:
    """Centroids (STAGE_CODES, R) of points (n, R); of fewer distinct points, the points themselves."""
    distinct = np.unique(points[: 4 * STAGE_CODES], axis=0)
    if len(points) <= 4 * STAGE_CODES and len(distinct) <= STAGE_CODES:
        return np.concatenate((distinct, np.repeat(distinct[:1], STAGE_CODES - len(distinct), axis=0)))
    fitted = faiss_module().Kmeans(
        points.shape[1],
        STAGE_CODES,
        niter=KMEANS_STEPS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=2**30,
    )
    fitted.train(np.ascontiguousarray(points), weights=weights.astype(np.float32))
    centroids: F32 = fitted.centroids
    return centroids


def kmeans_1d(points: F64, weights: F64, count: int) -> F64:
    """``count`` ascending centres of numbers (n,): Lloyd's method, begun at equal shares of the distribution."""
    order = np.argsort(points)
    points, weights = points[order], weights[order]
    mass, moment = np.cumsum(weights), np.cumsum(weights * points)
    places = np.searchsorted(mass, (np.arange(count) + 0.5) / count * mass[-1])
    centres = points[np.minimum(places, len(points) - 1)]
    for _ in range(60):
        edges = np.searchsorted(points, (centres[1:] + centres[:-1]) / 2)
        ends = np.concatenate((edges, [len(points)])) - 1
        total = np.diff(np.where(ends >= 0, mass[ends], 0), prepend=0)
        sums = np.diff(np.where(ends >= 0, moment[ends], 0), prepend=0)
        centres = np.sort(np.where(total > 0, sums / np.maximum(total, 1e-300), centres))
    return centres


def nearest(rows: F32, centroids: F32) -> npt.NDArray[np.uint8]:
    """The nearest centroid of each row (n,)."""
    scores = rows @ centroids.T
    scores -= 0.5 * (centroids**2).sum(axis=1)
    return scores.argmax(axis=1).astype(np.uint8)


def _half_step(latent: F64, weight: F64, bits: int) -> F32:
    """The half step (1,) with the least weighted error: a few far centroids of few rows may be cut off."""
    largest = max(float(np.abs(latent).max()), 1e-30)
    tried = largest / (2**bits - 1) * 0.8 ** np.arange(14)
    errors = [
        float((weight * (latent - levels_from_codes(round_to_codes(latent, half, bits), bits) * half) ** 2).sum())
        for half in tried
    ]
    return np.array([tried[int(np.argmin(errors))]], dtype=np.float32)


@dataclass(frozen=True)
class Stages:
    """Stored centroids of each stage, as lookups see them: (STAGE_CODES, R) in latent units; ``unit`` (R,) is one of these."""

    books: list[F32]
    unit: F64
    arrays: dict[str, Array]

    @staticmethod
    def store(centroids: list[F32], members: list[F64], unit: F64, bits: int) -> Stages:
        """Round centroids, given in the rows' own unit along the axes, to ``bits`` bits; ``members`` are the rows of each."""
        if not centroids:
            return Stages([], unit, {})
        books, packed, scales = [], [], []
        for book, own in zip(centroids, members, strict=True):
            latent = book / unit
            scale = _half_step(latent, own[:, None] * unit**2, bits)
            codes = round_to_codes(latent, scale.astype(np.float64), bits)
            books.append(levels_from_codes(codes, bits).astype(np.float32) * scale)
            packed.append(codes.reshape(-1))
            scales.append(scale)
        arrays: dict[str, Array] = {
            "coded.codebooks": pack(np.concatenate(packed), bits),
            "coded.codebook_scales": np.concatenate(scales),
        }
        return Stages(books, unit, arrays)

    def encode(self, along: F32) -> tuple[npt.NDArray[np.uint8], F32, F32]:
        """For rows along the axes (n, R): codes (n, stages), what they leave of the rows, and what they stand for in latent units."""
        codes = np.empty((len(along), len(self.books)), dtype=np.uint8)
        latent, rest = np.zeros_like(along), along
        for number, book in enumerate(self.books):
            plain = (book * self.unit).astype(np.float32)
            codes[:, number] = nearest(rest, plain)
            latent += book[codes[:, number]]
            rest = rest - plain[codes[:, number]]
        return codes, rest, latent
