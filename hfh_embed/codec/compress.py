"""`compress`: fit on a sample, choose, encode block by block, and put the arrays of a snapshot together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from hfh_embed import fidelity
from hfh_embed.codec.choice import TRIAL_ROWS, ZERO_BITS, Choice, Metric, choose, smallest
from hfh_embed.codec.coded import Sample
from hfh_embed.codec.encoding import Encoder, Errors, InMemory, Store, encode_table, own_arrays
from hfh_embed.codec.kept import SomeRows, often_used, widened, within
from hfh_embed.codec.partial import Partial
from hfh_embed.codec.stored import StoredFit
from hfh_embed.codec.survey import Runner, chunks_of, in_turn, survey
from hfh_embed.dense import DenseRows, Float32Rows
from hfh_embed.errors import InputError, RatioError, nearest_ratio
from hfh_embed.frequent import most_frequent
from hfh_embed.layout import Array, SnapshotSpec
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import PrivateSpec, TableSpec, Unknown
from hfh_embed.vocabulary import Vocabulary

__all__ = ["compress", "cores"]

Progress = Callable[[int, int, str], None]
Ids = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

SAMPLE_ROWS = 65_536
TURNS = 6
LARGEST_RATIO = 400.0


def compress(
    rows: DenseRows,
    *,
    ratio: float | None = None,
    min_cosine: float | None = None,
    min_recall: float | None = None,
    metric: Metric = "cosine",
    nan: Literal["refuse", "zero"] = "refuse",
    name: str = "table",
    frequencies: npt.NDArray[np.number] | None = None,
    least_uses: int = 0,
    vocabulary: Vocabulary | Sequence[str] | None = None,
    padding_id: int | None = None,
    unknown: Unknown | str = Unknown.ERROR,
    seed: int = 0,
    progress: Progress | None = None,
    partial: Partial | None = None,
    run: Runner[Any] = in_turn,
) -> Snapshot:
    """Compress a trained table into a snapshot in memory; ``.save(path)`` writes it.

    Args:
        rows: (N, D) floats, finite; may be a memory map larger than memory, or rows that are read part by part.
        ratio: N * D * 4 / stored bytes, >= 1; never exceeded by a byte.
        min_cosine, min_recall: instead of ``ratio``, the smallest table found whose mean cosine or recall@10 of neighbours, as
            ``hfh eval`` measures them, is at least this.
        metric: which neighbours count when forms are compared: by "cosine", "dot" or "l2".
        nan: what rows with NaN or infinite values get: an error, or "zero" for rows of zeros.
        name: the table's name.
        frequencies: (N,) how often each id is used; errors of frequent ids then weigh more, and some may get exact rows.
        least_uses: ids with smaller frequencies are not kept: their rows become zeros, and the others have their bytes. What a few
            uses taught a row is mostly noise (docs/results.md). With ``ratio``.
        vocabulary: the key of each id.
        padding_id: an id whose row is zero.
        unknown: what ids outside the table get, "zero" or "error".
        seed: of the sample and the k-means.
        progress: told (done, total, what).
        partial: a folder where encoded chunks are kept as they finish, so that a run that was killed can go on. The snapshot's arrays
            then lie there: save it before the folder is removed.
        run: who works on the chunks; in this process, one after the other, on all cores.

    Raises:
        RatioError: too few bytes; its ``nearest`` ratio can be met.
        InputError: rows that are not a finite (N, D) array, or frequencies that do not fit.
    """
    tell = progress or (lambda done, total, what: None)
    if (ratio is not None) + (min_cosine is not None) + (min_recall is not None) != 1:
        raise InputError("give one of ratio, min_cosine and min_recall")
    if metric not in get_args(Metric) or nan not in ("refuse", "zero"):
        raise InputError(f"metric is {metric!r} and nan {nan!r}; allowed are cosine, dot and l2; refuse and zero")
    dense = _checked(rows, nan)
    table = _blank(name, dense.shape, padding_id, unknown)
    if least_uses:
        _weights(frequencies, dense.shape[0])
        n, dim = dense.shape
        if ratio is None:
            raise InputError("least_uses goes with a ratio; give that, or leave least_uses out")
        kept = often_used(frequencies, least_uses, padding_id)
        if len(kept) < n:
            survey(dense, np.empty(0, dtype=np.int64), run, tell)
            inner, some = _blank(name, (len(kept), dim), None, unknown), Float32Rows(SomeRows(dense, kept), "refuse")
            own = _Work(some, inner, np.asarray(frequencies)[kept], None, metric, seed, partial, run, tell)
            return widened(within(ratio, (n, dim), len(kept), own.at), n, kept, padding_id, vocabulary)
    work = _Work(dense, table, frequencies, vocabulary, metric, seed, partial, run, tell)
    if ratio is not None:
        return work.at(ratio)
    for what, floor in (("min_cosine", min_cosine), ("min_recall", min_recall)):
        if floor is not None and not 0 < floor < 1:
            raise InputError(f"{what} is {floor}; give a number between 0 and 1")
    return work.above(min_cosine, min_recall)


class _Work:
    """One table to compress: its sample, and what that gives at any number of bytes."""

    def __init__(
        self,
        rows: Float32Rows,
        table: TableSpec,
        frequencies: npt.NDArray[np.number] | None,
        vocabulary: Vocabulary | Sequence[str] | None,
        metric: Metric,
        seed: int,
        partial: Partial | None,
        run: Runner[Any],
        tell: Progress,
    ) -> None:
        self.rows, self.table, self.frequencies, self.vocabulary = rows, table, frequencies, vocabulary
        self.metric, self.seed, self.partial, self.run, self.tell = metric, seed, partial, run, tell
        self.weights = _weights(frequencies, rows.shape[0])
        self.ids, self.zeros, self.sample = _sampled(rows, self.weights, table.padding_id, seed, run, tell)
        self.ranks = np.empty(0, dtype=np.int64)
        if frequencies is not None:
            order = np.argsort(-np.asarray(frequencies, dtype=np.float64), kind="stable")
            self.ranks = np.argsort(order)[self.ids]

    def choice(self, ratio: float, quick_only: bool = False) -> Choice | None:
        return choose(
            self.table,
            int(self.table.dense_nbytes / ratio),
            self.sample,
            self.ranks,
            metric=self.metric,
            threads=cores(),
            seed=self.seed,
            tell=self.tell,
            quick_only=quick_only,
        )

    def at(self, ratio: float) -> Snapshot:
        """The table at this ratio."""
        if not (isinstance(ratio, int | float) and np.isfinite(ratio) and ratio >= 1):
            raise RatioError(
                f"ratio is {ratio!r}; give a number from 1 on (20 means twenty times smaller)", nearest=1.0
            )
        name, choice = self.table.name, self.choice(ratio)
        if choice is None:
            smallest_nbytes = smallest(self.table, self.sample, self.seed)
            nearest = nearest_ratio(self.table.dense_nbytes, smallest_nbytes)
            raise RatioError(
                f"ratio {ratio:g} allows {int(self.table.dense_nbytes / ratio):,} bytes for table {name!r}, too few for any form; "
                f"the nearest ratio that can be met is {nearest:g}",
                nearest=nearest,
            )
        arrays, errors = self._encoded(choice.fit)
        return Snapshot(
            SnapshotSpec((choice.fit.table,)),
            {f"table/{name}/{key}": array for key, array in arrays.items()},
            vocabularies={name: self.vocabulary} if self.vocabulary is not None else None,
            metadata={
                "method": _describe(choice.fit.table),
                "relative error": f"{errors.relative:.4f}",
                **({"unweighted error": f"{errors.plain:.4f}"} if self.weights is not None else {}),
                "expected": f"mean cosine {choice.mean_cosine:.4f}; recall@10 {choice.recall_at_10:.3f} among "
                f"{min(TRIAL_ROWS, len(self.sample.rows)):,} rows of the sample",
            },
        )

    def _encoded(self, fit: StoredFit) -> tuple[dict[str, Array], Errors]:
        exact = np.empty(0, dtype=np.int64)
        if fit.table.exact is not None:
            exact = self.zeros
            if not len(self.zeros) and self.frequencies is not None:
                exact = most_frequent(self.frequencies, fit.table.exact.count)
        shared, own = dict(fit.arrays), own_arrays(fit)
        chunks = len(chunks_of(self.table.num_embeddings))
        store: Store = InMemory(own)
        if self.partial is not None and chunks > 1:
            depends = shared if self.weights is None else shared | {"weights": self.weights}
            store = self.partial.store(own, depends, chunks)
        errors = encode_table(Encoder(fit, self.rows, self.weights, exact), store, self.run, self.tell)
        return store.arrays | shared, errors

    def above(self, min_cosine: float | None, min_recall: float | None) -> Snapshot:
        """The smallest table found that keeps the mean cosine, or the recall, that is asked for."""
        floor = min_cosine if min_cosine is not None else min_recall
        assert floor is not None
        aim = floor
        for _ in range(TURNS):
            snapshot = self.at(self._largest_ratio(aim, min_cosine is not None))
            found = fidelity.compare(
                snapshot[self.table.name],
                self.rows,
                sample=fidelity.LARGE_ROWS,
                seed=self.seed,
                progress=self.tell,
            )
            got = found.mean_cosine if min_cosine is not None else found.recall_at_10
            if got >= floor:
                return snapshot
            aim = min(aim + 1.2 * (floor - got), (1 + aim) / 2)  # the sample promised more than the table kept
        raise InputError(
            f"no table was found that keeps {floor:g}; the last one kept {got:.4f}: give a smaller number or a ratio"
        )

    def _largest_ratio(self, aim: float, cosine: bool) -> float:
        """The largest ratio whose quick fit keeps ``aim`` on the sample, to a hundredth; 1 where none does."""
        low, high = 0.0, float(np.log(LARGEST_RATIO))
        while high - low > 0.01:
            middle = (low + high) / 2
            choice = self.choice(float(np.exp(middle)), quick_only=True)
            got = -1.0 if choice is None else choice.mean_cosine if cosine else choice.recall_at_10
            low, high = (middle, high) if got >= aim else (low, middle)
        return float(np.exp(low))


def _blank(name: str, shape: tuple[int, ...], padding_id: int | None, unknown: Unknown | str) -> TableSpec:
    """A table of the right sizes; its part is replaced by the fit's."""
    n, dim = shape
    part = PrivateSpec(dim, 32)
    return TableSpec(name, n, dim, private=part, padding_id=padding_id, unknown=Unknown(unknown))


def _checked(rows: DenseRows, nan: str) -> Float32Rows:
    if not hasattr(rows, "dtype") or not hasattr(rows, "shape") or rows.dtype.kind != "f":
        given = f"{rows.dtype} array" if hasattr(rows, "dtype") else type(rows).__name__
        raise InputError(f"rows are a {given}; give a float array of shape (ids, entries)")
    if len(rows.shape) != 2 or 0 in rows.shape:
        raise InputError(f"rows have shape {rows.shape}; give (ids, entries), both at least 1")
    return Float32Rows(rows, nan)


def _weights(frequencies: npt.NDArray[np.number] | None, count: int) -> F64 | None:
    """Weights of mean 1. Ids that were never seen keep a little, so that their rows are not forgotten."""
    if frequencies is None:
        return None
    given = np.asarray(frequencies, dtype=np.float64)
    if given.shape != (count,) or not np.isfinite(given).all() or given.min() < 0 or not given.any():
        raise InputError(
            f"frequencies have shape {given.shape}; give one finite number >= 0 for each of the {count:,} ids, not all zero"
        )
    floored: F64 = given / given.mean() + 0.01
    return floored / floored.mean()


def _sampled(
    rows: Float32Rows, weights: F64 | None, padding_id: int | None, seed: int, run: Runner[Any], tell: Progress
) -> tuple[Ids, Ids, Sample]:
    """The ids of a sample in random order, those of rows of zeros, and the sample; all rows are checked on the way."""
    generator = np.random.default_rng(seed)
    count = rows.shape[0]
    picked = np.arange(count)
    if count > SAMPLE_ROWS:
        picked = np.sort(generator.choice(count, SAMPLE_ROWS, replace=False))
    sample, zeros = survey(rows, picked, run, tell)
    if padding_id is not None:
        zeros = zeros[zeros != padding_id]  # its row is zero in every form
    own = weights[picked] if weights is not None else np.ones(len(picked))
    order = generator.permutation(len(picked))
    return picked[order], zeros, Sample(np.ascontiguousarray(sample[order]), own[order], len(zeros))


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _describe(table: TableSpec) -> str:
    """The form in words, for people who inspect the file."""
    if (trellis := table.trellis) is not None:
        text = f"{trellis.ring_bits} bits a row along {trellis.entries} principal axes by a trellis of {1 << trellis.state_bits:,} states"
        if table.coded is not None:
            text = f"{len(table.coded.chunks)} codes of the whole row, then {text}"
        if trellis.norm_bits:
            text += f", {trellis.norm_bits} bits for its length"
    else:
        assert table.private is not None
        text = f"rows of {table.private.bits} bits an entry"
        text += ", a scale a row" if table.private.row_scale else ""
    if table.exact is None:
        return text
    return text + f", {table.exact.count:,} " + ("rows of zeros" if table.exact.bits == ZERO_BITS else "exact rows")
