"""What compression lost: a table's rows against the dense ones they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.dense import DenseRows
from hfh_embed.errors import InputError
from hfh_embed.lookup import Table

__all__ = ["Fidelity", "compare", "row_errors"]

Rows = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]
Progress = Callable[[int, int, str], None]

BLOCK_ROWS = 16_384
NEIGHBOURS = (1, 10, 100)
WORST = 5
QUERY_BLOCK = 64


@dataclass(frozen=True)
class Fidelity:
    """Cosines between dense and compressed rows, errors, and how many true neighbours remain.

    ``relative_error`` is the squared error over the squared rows, both summed; ``recall`` is the share of each query's ten
    nearest rows by cosine in the dense table that are among its ten nearest in the compressed one, where query and rows
    are both compressed; ``recall_margin`` is half its 95 % confidence interval, and 1 and 100 are the same for so many. The weighted figures follow the frequencies.
    """

    rows: int
    mean_cosine: float
    first_percentile_cosine: float
    worst_cosine: float
    worst_ids: tuple[int, ...]
    worst_keys: tuple[str, ...] | None
    relative_error: float
    recall_at_1: float
    recall_at_10: float
    recall_at_100: float
    recall_margin: float
    queries: int
    weighted_cosine: float | None = None
    weighted_error: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """The figures, a line each."""
        worst = ", ".join(self.worst_keys or map(str, self.worst_ids))
        lines = [
            f"rows            {self.rows:,}",
            f"mean cosine     {self.mean_cosine:.4f}",
            f"1st percentile  {self.first_percentile_cosine:.4f}",
            f"worst cosine    {self.worst_cosine:.4f}  ({worst})",
            f"relative error  {self.relative_error:.4f}",
            f"recall@10       {self.recall_at_10:.4f} ± {self.recall_margin:.4f}  ({self.queries:,} queries)",
            f"recall@1, @100  {self.recall_at_1:.4f}, {self.recall_at_100:.4f}",
        ]
        if self.weighted_cosine is not None:
            lines.append(f"by frequency    cosine {self.weighted_cosine:.4f}, relative error {self.weighted_error:.4f}")
        return "\n".join(lines)


def compare(
    table: Table,
    dense: DenseRows,
    *,
    frequencies: npt.NDArray[np.number] | None = None,
    queries: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Fidelity:
    """Compare every row of a table with the dense (N, D) rows; neighbours for a sample of ``queries`` ids.

    Raises:
        InputError: the shapes differ, or there is nothing to compare.
    """
    n, dim = table.num_embeddings, table.embedding_dim
    if dense.shape != (n, dim):
        raise InputError(f"the dense table has shape {dense.shape}; table {table.name!r} is {n} x {dim}")
    if queries < 1:
        raise InputError(f"queries is {queries}; give at least 1")
    tell = progress or (lambda done, total, what: None)
    cosine, error, energy = row_errors(table, dense, tell)
    order = np.argsort(cosine, kind="stable")[: min(WORST, n)]
    weights = None
    if frequencies is not None:
        weights = np.asarray(frequencies, dtype=np.float64)
        if weights.shape != (n,) or not weights.sum() > 0:
            raise InputError(f"frequencies have shape {weights.shape}; give one for each of the {n} ids, not all zero")
        weights = weights / weights.sum()
    hits = _recall(table, dense, min(queries, n), seed, tell)
    vocabulary = table.vocabulary
    return Fidelity(
        rows=n,
        mean_cosine=float(cosine.mean()),
        first_percentile_cosine=float(np.quantile(cosine, 0.01)),
        worst_cosine=float(cosine[order[0]]),
        worst_ids=tuple(order.tolist()),
        worst_keys=tuple(vocabulary.key(id_) for id_ in order.tolist()) if vocabulary is not None else None,
        relative_error=_share(float(error.sum()), float(energy.sum())),
        recall_at_1=float(hits[:, 0].mean()),
        recall_at_10=float(hits[:, 1].mean()),
        recall_at_100=float(hits[:, 2].mean()),
        recall_margin=float(1.96 * hits[:, 1].std() / np.sqrt(len(hits))),
        queries=len(hits),
        weighted_cosine=float(weights @ cosine) if weights is not None else None,
        weighted_error=_share(float(weights @ error), float(weights @ energy)) if weights is not None else None,
    )


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else (0.0 if part == 0 else float("inf"))


def row_errors(table: Table, dense: DenseRows, progress: Progress | None = None) -> tuple[F64, F64, F64]:
    """For each row: cosine, squared error, squared length of the dense row. A zero row that stayed zero has cosine 1."""
    n = table.num_embeddings
    cosine, error, energy = np.empty(n), np.empty(n), np.empty(n)
    for start in range(0, n, BLOCK_ROWS):
        part = slice(start, min(start + BLOCK_ROWS, n))
        true = np.asarray(dense[part], dtype=np.float64)
        found = table.lookup(np.arange(part.start, part.stop)).astype(np.float64)
        error[part] = ((true - found) ** 2).sum(axis=1)
        energy[part] = (true**2).sum(axis=1)
        lengths = np.sqrt(energy[part] * (found**2).sum(axis=1))
        same = (error[part] == 0).astype(np.float64)
        cosine[part] = np.divide((true * found).sum(axis=1), lengths, out=same, where=lengths > 0)
        if progress is not None:
            progress(part.stop, n, "compare rows")
    return cosine, error, energy


def _recall(table: Table, dense: DenseRows, queries: int, seed: int, tell: Progress) -> F64:
    """For each query the shares of its true neighbours that remain, (queries, len(NEIGHBOURS))."""
    n = table.num_embeddings
    k = min(NEIGHBOURS[-1], n - 1)
    if k < 1:
        return np.ones((1, len(NEIGHBOURS)))
    ids = np.sort(np.random.default_rng(seed).choice(n, queries, replace=False))
    hits = np.empty((queries, len(NEIGHBOURS)))
    for start in range(0, queries, QUERY_BLOCK):
        asked = ids[start : start + QUERY_BLOCK]
        true = _nearest(lambda some: np.asarray(dense[some], dtype=np.float32), n, asked, k)
        found = _nearest(table.lookup, n, asked, k)
        for place, (a, b) in enumerate(zip(true, found, strict=True), start=start):
            hits[place] = [len(np.intersect1d(a[:some], b[:some])) / min(some, k) for some in NEIGHBOURS]
        tell(min(start + QUERY_BLOCK, queries), queries, "compare neighbours")
    return hits


def _nearest(rows: Callable[[Any], Rows], n: int, asked: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
    """The k rows with the largest cosine to each asked one, itself left out: (len(asked), k), nearest first."""
    wanted = _unit(rows(asked))
    best = np.full((len(asked), k), -np.inf, dtype=np.float32)
    which = np.zeros((len(asked), k), dtype=np.int64)
    for start in range(0, n, BLOCK_ROWS):
        some = np.arange(start, min(start + BLOCK_ROWS, n))
        scores = wanted @ _unit(rows(some)).T
        scores[asked[:, None] == some] = -np.inf
        scores = np.concatenate((best, scores), axis=1)
        ids = np.concatenate((which, np.broadcast_to(some, (len(asked), len(some)))), axis=1)
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best, which = np.take_along_axis(scores, top, axis=1), np.take_along_axis(ids, top, axis=1)
    return np.take_along_axis(which, np.argsort(-best, axis=1, kind="stable"), axis=1)


def _unit(rows: Rows) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit
