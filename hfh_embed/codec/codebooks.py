"""Stages of whole-row codebooks (k-means of the rows, then of what it leaves): what clustered tables begin with.

The k-means is faiss'. Codes are found by a beam search over the stages, and the centroids of all stages are then fitted again together
(as in Martinez et al., "LSQ++", ECCV 2018). They are stored in few bits with one scale a stage, in the unit of each latent entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import MissingDependencyError
from hfh_embed.kernels import native_chosen
from hfh_embed.layout import Array
from hfh_embed.packing import levels_from_codes, pack, round_to_codes
from hfh_embed.spec import TableSpec

__all__ = [
    "STAGE_BITS",
    "STAGE_CODES",
    "Search",
    "Stages",
    "Staircase",
    "beam_for",
    "faiss_module",
    "is_large",
    "kmeans_1d",
]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
STAGE_BITS = 8
STAGE_CODES = 1 << STAGE_BITS
KMEANS_STEPS = 12
BEAM = 6
"""Partial codes that the search keeps from one stage to the next, in tables that are not large."""

LARGE = 2**25
"""Entries of a table from which on the search keeps half as many: an error that is some 2 % larger, in two thirds of the time."""

BEAM_ROWS = 512


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


def _kmeans(points: F32, weights: F64, seed: int) -> F32:
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


def is_large(table: TableSpec) -> bool:
    """Whether the time that a table's codes take to find is to be weighed."""
    return table.num_embeddings * table.embedding_dim >= LARGE


def beam_for(table: TableSpec) -> int:
    """How many partial codes the search for a table's codes keeps."""
    return BEAM // 2 if is_large(table) else BEAM


class Search:
    """The search for the codes of rows among centroids, (STAGE_CODES, R) of each stage."""

    def __init__(self, books: list[F32], beam: int, threads: int) -> None:
        self._books, self._beam, self._threads = books, beam, threads
        self._native: Any = None
        if native_chosen():
            from hfh_embed.kernels.native_coded import stage_search

            self._native = stage_search(np.concatenate(books))

    def __reduce__(self) -> tuple[Any, ...]:
        return Search, (self._books, self._beam, self._threads)

    def codes(self, rows: F32) -> npt.NDArray[np.uint8]:
        """The codes (n, stages) of rows (n, R) whose centroids' sum is near them."""
        codes = np.zeros((len(rows), len(self._books)), dtype=np.uint8)
        if self._native is not None:
            self._native.search(np.ascontiguousarray(rows, dtype=np.float32), self._beam, codes, self._threads)
            return codes
        for start in range(0, len(rows), BEAM_ROWS):
            part = slice(start, start + BEAM_ROWS)
            codes[part] = _beam(rows[part], self._books, self._beam)
        return codes


def _beam(rows: F32, books: list[F32], beam: int) -> npt.NDArray[np.uint8]:
    """As the compiled search: of each stage the best partial codes, by what they leave of the row."""
    n = len(rows)
    every = np.arange(n)[:, None]
    rest, codes = rows[:, None], np.zeros((n, 1, 0), dtype=np.uint8)
    for number, book in enumerate(books):
        wanted = beam if number < len(books) - 1 else 1
        left = (rest**2).sum(axis=2)[:, :, None] - 2 * (rest @ book.T) + (book**2).sum(axis=1)
        best = left.reshape(n, -1).argsort(axis=1, kind="stable")[:, :wanted]
        partial, picked = best // STAGE_CODES, best % STAGE_CODES
        codes = np.concatenate((codes[every, partial], picked[..., None].astype(np.uint8)), axis=2)
        rest = rest[every, partial] - book[picked]
    return codes[:, 0]


def _refitted(rows: F32, weights: F64, codes: npt.NDArray[np.uint8], books: list[F32]) -> list[F32]:
    """The centroids of all stages whose sums by these codes leave the least weighted error."""
    stages, size = len(books), STAGE_CODES
    gram = np.zeros((stages * size, stages * size))
    moment = np.zeros((stages * size, rows.shape[1]))
    rest = (rows - decoded(codes, books)) * weights[:, None].astype(np.float32)
    wide = codes.astype(np.int64)
    for one in range(stages):
        mine = slice(one * size, (one + 1) * size)
        order = np.argsort(wide[:, one], kind="stable")
        present, first = np.unique(wide[order, one], return_index=True)
        moment[one * size + present] = np.add.reduceat(rest[order], first, axis=0)
        for other in range(one, stages):
            theirs = slice(other * size, (other + 1) * size)
            both = np.bincount(wide[:, one] * size + wide[:, other], weights, size * size).reshape(size, size)
            gram[mine, theirs] = both
            gram[theirs, mine] = both.T
    gram[np.diag_indices_from(gram)] += 1
    moved = np.linalg.solve(gram, moment).astype(np.float32)
    return [book + moved[number * size : (number + 1) * size] for number, book in enumerate(books)]


def decoded(codes: npt.NDArray[np.uint8], books: list[F32]) -> F32:
    """The sums of centroids (n, R) that codes (n, stages) name."""
    total: F32 = books[0][codes[:, 0]]
    for number in range(1, len(books)):
        total = total + books[number][codes[:, number]]
    return total


class Staircase:
    """Centroids of ever more stages for the same rows (n, D): the first ones are found once."""

    def __init__(self, rows: F32, weights: F64, seed: int, beam: int, threads: int) -> None:
        self._rows, self._weights, self._seed = rows, weights, seed
        self._beam, self._threads = beam, threads
        self._rest = rows
        self._books: list[F32] = []

    def stages(self, count: int) -> tuple[list[F32], list[F64], F32]:
        """Of each stage its centroids (STAGE_CODES, D) and their rows' weight (STAGE_CODES,); what they leave of the rows."""
        while len(self._books) < count:
            book = _kmeans(self._rest, self._weights, self._seed + len(self._books))
            self._books.append(book)
            self._rest = self._rest - book[Search([book], 1, self._threads).codes(self._rest)[:, 0]]
        books = self._books[:count]
        if not count:
            return [], [], self._rows
        codes = Search(books, self._beam, self._threads).codes(self._rows)
        if count > 1:
            books = _refitted(self._rows, self._weights, codes, books)
            codes = Search(books, self._beam, self._threads).codes(self._rows)
        members: list[F64] = [
            np.bincount(codes[:, number], self._weights, STAGE_CODES).astype(np.float64) for number in range(count)
        ]
        left: F32 = self._rows - decoded(codes, books)
        return books, members, left


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

    def search(self, beam: int, threads: int) -> Search | None:
        """The search for the codes of rows along the axes; None without stages."""
        if not self.books:
            return None
        return Search([(book * self.unit).astype(np.float32) for book in self.books], beam, threads)

    def encode(self, along: F32, search: Search | None) -> tuple[npt.NDArray[np.uint8], F32, F32]:
        """For rows along the axes (n, R): codes (n, stages), what they leave of the rows, and what they stand for in latent units."""
        if search is None:
            return np.empty((len(along), 0), dtype=np.uint8), along, np.zeros_like(along)
        codes = search.codes(along)
        latent = decoded(codes, self.books)
        return codes, along - latent * self.unit.astype(np.float32), latent
