"""Nearest rows, exactly, over the compressed form: no dense copy is ever made.

Rows are reconstructed a tile at a time into one buffer that stays in the processor's second-level cache, multiplied with all
queries, and forgotten; only what beats a query's k-th best so far is kept. A pass over the table serves every query of a
call, so that many queries together cost much less than one after the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import InputError

__all__ = ["MAX_K", "Metric", "Stopped", "check", "nearest"]

Metric = Literal["dot", "cosine", "l2"]
Ids = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Fill = Callable[[Ids, F32], object]

MAX_K = 1_000
TILE_BYTES = 512 * 1024  # of rows: they stay in the second-level cache; benchmarks/search.py tries other sizes
SPARE = 16  # candidates beyond k, since the scan's float32 and the ranking's float64 may order neighbours differently
MOST_QUERIES = 128  # of one pass; a tile's scores then take as much room as its rows


class Stopped(Exception):  # noqa: N818  it is asked for, and no error
    """The search was told to stop before its end."""


class _Best:
    """The best k candidates of one query: a buffer that is cut back to k when it is full."""

    def __init__(self, k: int, tile: int) -> None:
        self._k, self._count = k, 0
        self._ids = np.empty(2 * k + tile, dtype=np.int64)
        self._scores = np.empty(2 * k + tile, dtype=np.float32)
        self.threshold = np.float32(-np.inf)

    def add(self, first: int, scores: F32) -> None:
        """Offer the ids from ``first`` on; those that cannot be among the best k are left out."""
        hits = np.flatnonzero(scores > self.threshold)
        if self._count + len(hits) > len(self._ids):
            self.cut()
            hits = hits[scores[hits] > self.threshold]
        end = self._count + len(hits)
        self._ids[self._count : end] = hits
        self._ids[self._count : end] += first
        self._scores[self._count : end] = scores[hits]
        self._count = end
        if end > 2 * self._k:
            self.cut()

    def cut(self) -> None:
        """Keep the best k, among equals those of the lowest ids. Ids stay ascending, since they came so."""
        scores = self._scores[: self._count]
        if self._count <= self._k:
            return
        edge = np.partition(scores, self._count - self._k)[self._count - self._k]
        keep = scores > edge
        equal = np.flatnonzero(scores == edge)
        keep[equal[: self._k - int(keep.sum())]] = True
        self._ids[: self._k] = self._ids[: self._count][keep]
        self._scores[: self._k] = scores[keep]
        self._count, self.threshold = self._k, edge

    def ids(self) -> Ids:
        """At most k ids, ascending."""
        self.cut()
        return self._ids[: self._count]


def nearest(
    fill: Fill,
    count: int,
    queries: npt.ArrayLike,
    k: int,
    metric: Metric = "dot",
    *,
    without: int | None = None,
    num_threads: int = 1,
    stop: Callable[[], bool] | None = None,
) -> tuple[Ids, F32]:
    """The k ids of 0 to ``count`` - 1 whose rows are nearest to each query.

    Args:
        fill: writes the rows of ids (T,) into (T, D) float32.
        count: N.
        queries: (Q, D) numbers, finite.
        k: at least 1; fewer are found where there are fewer rows.
        metric: "dot" and "cosine" want large scores; "l2" is the squared distance and wants small ones.
        without: an id that is never found.
        num_threads: threads over parts of the table.
        stop: asked once a tile; Stopped is raised when it says so.

    Returns:
        ids (Q, k) int64 from nearest to farthest, equals by ascending id, and their scores (Q, k) float32, computed in
        float64. Where fewer rows than k have finite scores, the rest is id -1 and score NaN.
    """
    wanted = np.ascontiguousarray(queries, dtype=np.float32)
    dim, found = wanted.shape[1], min(k, count - (without is not None and 0 <= without < count))
    ids = np.full((len(wanted), found), -1, dtype=np.int64)
    scores = np.full((len(wanted), found), np.nan, dtype=np.float32)
    if not found:
        return ids, scores
    # A multiple of 64 rows, so that equal rows have equal scores: no row falls into a matrix product's ragged end.
    tile = max(64, TILE_BYTES // (4 * dim) // 64 * 64)
    for begin in range(0, len(wanted), MOST_QUERIES):
        some = wanted[begin : begin + MOST_QUERIES]
        parts = _parts(count, tile, num_threads)

        def scan(part: range, some: F32 = some) -> list[Ids]:
            return _scan(fill, part, tile, some, found + SPARE, metric, without, stop)

        if len(parts) == 1:
            candidates = [scan(parts[0])]
        else:
            with ThreadPoolExecutor(len(parts)) as threads:
                candidates = list(threads.map(scan, parts))
        for number, query in enumerate(some):
            own = np.concatenate([part[number] for part in candidates])
            best, exact = _ranked(fill, own, query, found, metric)
            ids[begin + number, : len(best)] = best
            scores[begin + number, : len(best)] = exact
    return ids, scores


def _parts(count: int, tile: int, num_threads: int) -> list[range]:
    """Ranges of ids for each thread, in whole tiles."""
    tiles = -(-count // tile)
    threads = max(1, min(num_threads, tiles))
    edges = [min(count, number * tiles // threads * tile) for number in range(threads + 1)]
    return [range(first, last) for first, last in itertools.pairwise(edges)]


def _scan(
    fill: Fill,
    part: range,
    tile: int,
    queries: F32,
    k: int,
    metric: Metric,
    without: int | None,
    stop: Callable[[], bool] | None,
) -> list[Ids]:
    """The candidates of each query among the ids of ``part``."""
    best = [_Best(k, tile) for _ in queries]
    thresholds = np.full(len(queries), -np.inf, dtype=np.float32)
    ids = np.arange(part.start, part.start + tile)
    rows = np.zeros((tile, queries.shape[1]), dtype=np.float32)
    scores = np.empty((len(queries), tile), dtype=np.float32)
    for first in range(part.start, part.stop, tile):
        if stop is not None and stop():
            raise Stopped
        size = min(tile, part.stop - first)
        fill(ids[:size], rows[:size])
        with np.errstate(all="ignore"):  # rows of a damaged table may be anything
            _score(queries, rows, metric, scores)
        if without is not None and first <= without < first + size:
            scores[:, without - first] = -np.inf
        for number in np.flatnonzero(~(scores[:, :size].max(axis=1) <= thresholds)):  # also where the maximum is NaN
            best[number].add(first, scores[number, :size])
            thresholds[number] = best[number].threshold
        ids += tile
    return [own.ids() for own in best]


def _score(queries: F32, rows: F32, metric: Metric, out: F32) -> None:
    """Larger is nearer, up to what is the same for all rows of a query: (Q, T)."""
    np.matmul(queries, rows.T, out=out)
    if metric == "dot":
        return
    squares = np.einsum("td,td->t", rows, rows)
    if metric == "l2":
        out -= squares / 2
    else:
        out *= _inverse_root(squares)


def _inverse_root(squares: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """1 / sqrt, and 0 for rows of zeros: they point nowhere."""
    roots = np.sqrt(squares)
    return np.divide(1, roots, out=np.zeros_like(roots), where=roots > 0)


def _ranked(fill: Fill, ids: Ids, query: F32, k: int, metric: Metric) -> tuple[Ids, F32]:
    """The best k of a few candidates by their exact scores."""
    rows = np.empty((len(ids), len(query)), dtype=np.float32)
    fill(ids, rows)
    wide, other = rows.astype(np.float64), query.astype(np.float64)
    with np.errstate(all="ignore"):
        if metric == "l2":
            exact = ((wide - other) ** 2).sum(axis=1)
        else:
            exact = (wide * other).sum(axis=1)
            if metric == "cosine":
                exact *= _inverse_root((wide * wide).sum(axis=1)) * _inverse_root((other * other).sum())
        scores = exact.astype(np.float32)
    order = np.lexsort((ids, scores if metric == "l2" else -scores))[:k]
    return ids[order], scores[order]


def check(queries: npt.NDArray[Any], dim: int, k: object, metric: object) -> None:
    """InputError where a search cannot be made of these."""
    if metric not in get_args(Metric):
        raise InputError(f"metric is {metric!r}; allowed are {', '.join(get_args(Metric))}")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
        raise InputError(f"k is {k!r}; give an integer from 1 to {MAX_K:,}")
    if queries.dtype.kind not in "fiu" or queries.ndim not in (1, 2) or queries.shape[-1] != dim:
        raise InputError(
            f"vectors are {queries.dtype} of shape {queries.shape}; give numbers of shape ({dim},) or (queries, {dim})"
        )
    if not np.isfinite(queries).all():
        raise InputError("vectors hold NaN or infinity; give finite numbers")
