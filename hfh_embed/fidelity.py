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

__all__ = ["LARGE_ROWS", "Fidelity", "compare", "row_errors"]

Rows = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Progress = Callable[[int, int, str], None]

BLOCK_ROWS = 16_384
NEIGHBOURS = (1, 10, 100)
WORST = 5
LARGE_ROWS = 1_000_000
"""Of larger tables a sample of so many rows is compared, unless all are asked for: neighbours cost rows times queries."""

QUERY_BLOCK = 256


@dataclass(frozen=True)
class Fidelity:
    """Cosines between dense and compressed rows, errors, and how many true neighbours remain.

    ``relative_error`` is the squared error over the squared rows, both summed; ``recall`` is the share of each query's ten
    nearest rows by cosine in the dense table that are among its ten nearest in the compressed one, where query and rows
    are both compressed; 1 and 100 are the same for so many. The margins are half the 95 % confidence intervals: of the recalls for the
    queries, of cosine and error for a sample of the rows (0 where all were compared). On a sample, neighbours are those among its rows.
    The weighted figures follow the frequencies.
    """

    rows: int
    compared: int
    mean_cosine: float
    cosine_margin: float
    first_percentile_cosine: float
    worst_cosine: float
    worst_ids: tuple[int, ...]
    worst_keys: tuple[str, ...] | None
    relative_error: float
    error_margin: float
    recall_at_1: float
    recall_at_10: float
    recall_at_100: float
    recall_at_1_margin: float
    recall_margin: float
    recall_at_100_margin: float
    queries: int
    weighted_cosine: float | None = None
    weighted_error: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """The figures, a line each."""
        worst = ", ".join(self.worst_keys or map(str, self.worst_ids))
        sampled = self.compared < self.rows
        of = f"  (a sample of {self.compared:,}; neighbours are those in it)" if sampled else ""

        def within(value: float, margin: float) -> str:
            return f"{value:.4f} ± {margin:.4f}" if margin else f"{value:.4f}"

        recalls = (
            within(self.recall_at_1, self.recall_at_1_margin),
            within(self.recall_at_100, self.recall_at_100_margin),
        )
        lines = [
            f"rows            {self.rows:,}{of}",
            f"mean cosine     {within(self.mean_cosine, self.cosine_margin)}",
            f"1st percentile  {self.first_percentile_cosine:.4f}",
            f"worst cosine    {self.worst_cosine:.4f}  ({worst})",
            f"relative error  {within(self.relative_error, self.error_margin)}",
            f"recall@10       {self.recall_at_10:.4f} ± {self.recall_margin:.4f}  ({self.queries:,} queries)",
            f"recall@1, @100  {recalls[0]}, {recalls[1]}",
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
    sample: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Fidelity:
    """Compare the rows of a table with the dense (N, D) rows; neighbours for ``queries`` of them.

    Args:
        table: the compressed one.
        dense: what it was made of.
        frequencies: (N,) how often each id is used.
        queries: how many rows' neighbours are looked for.
        sample: compare so many rows instead of all, and look for neighbours among them: what large tables need.
        seed: of the sample and the queries.
        progress: told (done, total, what).

    Raises:
        InputError: the shapes differ, or there is nothing to compare.
    """
    n, dim = table.num_embeddings, table.embedding_dim
    if dense.shape != (n, dim):
        raise InputError(f"the dense table has shape {dense.shape}; table {table.name!r} is {n} x {dim}")
    for what, number in (("queries", queries), ("sample", sample)):
        if number is not None and number < 1:
            raise InputError(f"{what} is {number}; give at least 1")
    tell = progress or (lambda done, total, what: None)
    generator = np.random.default_rng(seed)
    ids = np.sort(generator.choice(n, sample, replace=False)) if sample is not None and sample < n else None
    cosine, error, energy = row_errors(table, dense, tell, ids)
    count = len(cosine)
    order = np.argsort(cosine, kind="stable")[: min(WORST, count)]
    worst = (order if ids is None else ids[order]).tolist()
    weights = None
    if frequencies is not None:
        weights = np.asarray(frequencies, dtype=np.float64)
        if weights.shape != (n,) or not weights.sum() > 0:
            raise InputError(f"frequencies have shape {weights.shape}; give one for each of the {n} ids, not all zero")
        weights = weights if ids is None else weights[ids]
        weights = weights / max(weights.sum(), 1e-300)
    hits = _recall(table, dense, ids, min(queries, count), generator, tell)
    margins = 1.96 * hits.std(axis=0) / np.sqrt(len(hits))
    relative = _share(float(error.sum()), float(energy.sum()))
    spread = 1.96 / np.sqrt(count) if ids is not None else 0.0
    vocabulary = table.vocabulary
    return Fidelity(
        rows=n,
        compared=count,
        mean_cosine=float(cosine.mean()),
        cosine_margin=float(spread * cosine.std()),
        first_percentile_cosine=float(np.quantile(cosine, 0.01)),
        worst_cosine=float(cosine[order[0]]),
        worst_ids=tuple(worst),
        worst_keys=tuple(vocabulary.key(id_) for id_ in worst) if vocabulary is not None else None,
        relative_error=relative,
        error_margin=_share(float(spread * (error - relative * energy).std()), float(energy.mean())) if spread else 0.0,
        recall_at_1=float(hits[:, 0].mean()),
        recall_at_10=float(hits[:, 1].mean()),
        recall_at_100=float(hits[:, 2].mean()),
        recall_at_1_margin=float(margins[0]),
        recall_margin=float(margins[1]),
        recall_at_100_margin=float(margins[2]),
        queries=len(hits),
        weighted_cosine=float(weights @ cosine) if weights is not None else None,
        weighted_error=_share(float(weights @ error), float(weights @ energy)) if weights is not None else None,
    )


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else (0.0 if part == 0 else float("inf"))


def row_errors(
    table: Table, dense: DenseRows, progress: Progress | None = None, ids: Ids | None = None
) -> tuple[F64, F64, F64]:
    """For each row, or those of ascending ids: cosine, squared error, squared length of the dense row.

    A zero row that stayed zero has cosine 1.
    """
    n = table.num_embeddings if ids is None else len(ids)
    cosine, error, energy = np.empty(n), np.empty(n), np.empty(n)
    for start in range(0, n, BLOCK_ROWS):
        part = slice(start, min(start + BLOCK_ROWS, n))
        true = np.asarray(dense[part if ids is None else ids[part]], dtype=np.float64)
        found = table.lookup(np.arange(part.start, part.stop) if ids is None else ids[part]).astype(np.float64)
        error[part] = ((true - found) ** 2).sum(axis=1)
        energy[part] = (true**2).sum(axis=1)
        lengths = np.sqrt(energy[part] * (found**2).sum(axis=1))
        same = (error[part] == 0).astype(np.float64)
        cosine[part] = np.divide((true * found).sum(axis=1), lengths, out=same, where=lengths > 0)
        if progress is not None:
            progress(part.stop, n, "compare rows")
    return cosine, error, energy


def _recall(
    table: Table, dense: DenseRows, ids: Ids | None, queries: int, generator: np.random.Generator, tell: Progress
) -> F64:
    """For each query the shares of its true neighbours that remain, (queries, len(NEIGHBOURS))."""
    n = table.num_embeddings if ids is None else len(ids)
    k = min(NEIGHBOURS[-1], n - 1)
    if k < 1:
        return np.ones((1, len(NEIGHBOURS)))
    places = np.sort(generator.choice(n, queries, replace=False))
    hits = np.empty((queries, len(NEIGHBOURS)))

    def true_rows(some: Ids) -> Rows:
        whole = ids is None and len(some) == some[-1] - some[0] + 1  # consecutive rows of a file are cheaper as a slice
        wanted: Any = slice(int(some[0]), int(some[-1]) + 1) if whole else some if ids is None else ids[some]
        return np.asarray(dense[wanted], dtype=np.float32)

    def found_rows(some: Ids) -> Rows:
        return table.lookup(some if ids is None else ids[some])

    for start in range(0, queries, QUERY_BLOCK):
        asked = places[start : start + QUERY_BLOCK]
        true, found = _nearest(true_rows, n, asked, k), _nearest(found_rows, n, asked, k)
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
