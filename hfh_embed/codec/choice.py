"""Which form suits a table at a number of bytes: each is fitted quickly and measured on the same part of the sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hfh_embed.codec.codebooks import beam_for, is_large
from hfh_embed.codec.coded import Effort, Form, Progress, Sample, fit_coded, nbytes, plan_coded, staircase
from hfh_embed.codec.forms import fit_rows, rows_specs
from hfh_embed.codec.stored import StoredFit
from hfh_embed.codec.trellis import ring_work
from hfh_embed.errors import InputError
from hfh_embed.spec import ExactSpec, TableSpec

__all__ = ["EXACT_BITS", "ZERO_BITS", "Choice", "Metric", "choose", "smallest"]

Metric = Literal["cosine", "dot", "l2"]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
STAGES = tuple(range(10))
TRIAL_ROWS = 8_192
TRIAL_QUERIES = 400
NEIGHBOURS = 10
EXACT_SHARES = (0.0, 0.25)
EXACT_BITS = 8
ZERO_BITS = 1
"""Of exact rows that are zeros: a scale of 0 makes any values zero."""

WORK = 3e10
"""Steps of the search times states that encoding may cost: the larger the table, the fewer states."""

DOUBLING = 0.05
"""What a form of a large table must gain, as a share of its error or recall, where its codes take twice as long to find."""

MOST_STATE_BITS = 12


@dataclass(frozen=True)
class Choice:
    """The chosen form's fit, and what it lost on the part of the sample that decided."""

    fit: StoredFit
    relative_error: float
    recall_at_10: float
    mean_cosine: float


@dataclass(frozen=True)
class _Trial:
    rows: F32
    weights: F64
    hot: npt.NDArray[np.bool_]
    """Rows that would be exact."""


def effort_for(table: TableSpec, threads: int) -> Effort:
    """As many states as the table's size allows."""
    steps = table.num_embeddings * table.embedding_dim
    bits = int(np.clip(np.log2(max(WORK / steps, 1)), 8, MOST_STATE_BITS))
    return Effort(bits, 5, 16_384 if bits > 9 else 8_192, 65_536, threads)


def search_work(table: TableSpec) -> float:
    """About how long a row's codes take to find, in steps of one entry and state of a trellis (0.035 ns where this was measured)."""
    stages = len(table.coded.chunks) if table.coded is not None else 0
    return (
        37_000
        + stages * (5_700 + 2_600 * beam_for(table))
        + (ring_work(table.trellis) if table.trellis is not None else 0)
    )


def choose(
    table: TableSpec,
    budget: int,
    sample: Sample,
    hot: npt.NDArray[np.int64],
    *,
    metric: Metric,
    threads: int,
    seed: int,
    tell: Progress,
    quick_only: bool = False,
) -> Choice | None:
    """The best form of at most ``budget`` bytes, or None where none is small enough.

    Args:
        table: name and sizes; its parts are replaced.
        budget: bytes.
        sample: rows to fit to and to measure on; of a large sample of a larger table, the first rows are only measured on.
        hot: the rank of each sampled id by frequency (n,), or empty where frequencies are not known.
        metric: which neighbours count.
        threads: of the search.
        seed: of the k-means and the books.
        tell: told (done, total, what).
        quick_only: try few forms, and return the best quick fit.
    """
    effort = effort_for(table, threads)
    quick = Effort(8, 2, 4_096, effort.stage_rows, threads)
    apart = TRIAL_ROWS if 4 * TRIAL_ROWS <= len(sample.rows) < table.num_embeddings else 0
    fitted = Sample(sample.rows[apart:], sample.weights[apart:], sample.zeros)
    stairs = staircase(table, fitted, quick, seed)
    best: tuple[float, Form | None, Choice] | None = None
    tried = 0

    def consider(form: Form | None) -> bool:
        """Whether this form is the best so far."""
        nonlocal best, tried
        tried += 1
        tell(min(tried, 10), 11, "try forms")
        fit: StoredFit | None
        if form is None:
            fit = fit_rows(table, budget, fitted.rows, sample.zeros > 0)
        else:
            plan = plan_coded(table, budget, fitted, form, quick, stairs)
            fit = fit_coded(plan, fitted, quick, seed, _silent) if plan is not None else None
        if fit is None:
            return False
        trial = _trial(sample, hot, form.exact if form is not None else None)
        try:
            choice = _measured(fit, trial, metric)
        except InputError:  # exact rows have no place in this form
            return False
        score = np.log(max(choice.relative_error, 1e-9)) - np.log(max(choice.recall_at_10, 1e-3))
        if is_large(table):
            score += DOUBLING * np.log2(search_work(fit.table))
        if best is not None and score >= best[0]:
            return False
        best = (score, form, choice)
        return True

    consider(None)
    consider(Form(0, True))
    zeros = ExactSpec(sample.zeros, ZERO_BITS) if sample.zeros else None
    for stages in (0, 2) if quick_only else STAGES:
        if zeros is not None and stages == 0:  # its centre would be added to rows of zeros
            continue
        if not consider(Form(stages, False, zeros)) and stages > 1:
            break
    if best is not None and best[1] is not None and len(hot) and not sample.zeros:
        for share in EXACT_SHARES[1:]:
            exact = _exact(table, int(budget * share), best[2].fit.table.latent_dim)
            if exact is not None:
                # With a factor for each id the centre is an entry of the latent row, thousands of times as large as the
                # others: one scale for all of an exact row's entries would round the others away, or the centre's.
                consider(Form(best[1].stages, False, exact))
    if best is None:
        return None
    form = best[1]
    if form is None or quick_only:
        return best[2]
    plan = plan_coded(table, budget, fitted, form, effort, stairs)
    assert plan is not None
    fit = fit_coded(plan, fitted, effort, seed, tell)
    trial = _trial(sample, hot, form.exact)
    return _measured(fit, trial, metric)


def _trial(sample: Sample, hot: npt.NDArray[np.int64], exact: ExactSpec | None) -> _Trial:
    """The first rows of the sample, and which would be exact: rows of zeros, or the most frequent of ids with known ranks."""
    rows = sample.rows[:TRIAL_ROWS]
    mine: npt.NDArray[np.bool_] = np.zeros(len(rows), dtype=np.bool_)
    if exact is not None:
        mine = np.asarray(~rows.any(axis=1) if exact.bits == ZERO_BITS else hot[:TRIAL_ROWS] < exact.count)
    return _Trial(rows, sample.weights[:TRIAL_ROWS], mine)


def _silent(done: int, total: int, what: str) -> None:
    pass


def _exact(table: TableSpec, budget: int, latent: int) -> ExactSpec | None:
    """As many exact rows as the budget holds."""
    one = latent * EXACT_BITS // 8 + 2 + 4
    count = min(budget // one, table.num_embeddings)
    return ExactSpec(count, EXACT_BITS) if count else None


def _measured(fit: StoredFit, trial: _Trial, metric: Metric) -> Choice:
    """Weighted relative error, and how many of the nearest rows within the trial remain."""
    decoded: F32 = fit.encode(trial.rows)[1]
    if fit.table.exact is not None and trial.hot.any():
        decoded[trial.hot] = fit.exact(trial.rows[trial.hot], fit.table.exact.bits)[2]
    errors = np.square((trial.rows - decoded).astype(np.float64)).sum(axis=1)
    energy = (trial.rows.astype(np.float64) ** 2).sum(axis=1)
    error = float((trial.weights * errors).sum() / max(float((trial.weights * energy).sum()), 1e-300))
    count = len(trial.rows)
    k = min(NEIGHBOURS, count - 1)
    if k < 1:
        return Choice(fit, error, 1.0, 1.0)
    asked = np.arange(0, count, max(1, count // TRIAL_QUERIES))
    true, found = _nearest(trial.rows, asked, k, metric), _nearest(decoded, asked, k, metric)
    same = [len(np.intersect1d(a, b)) / k for a, b in zip(true, found, strict=True)]
    cosine = (_unit(trial.rows) * _unit(decoded)).sum(axis=1)
    return Choice(fit, error, float(np.mean(same)), float(np.where(energy > 0, cosine, 1).mean()))


def _unit(rows: F32) -> F32:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: F32 = (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit


def _nearest(rows: F32, asked: npt.NDArray[np.int64], k: int, metric: Metric) -> npt.NDArray[np.int64]:
    """The k best rows for each asked one, itself left out."""
    if metric == "cosine":
        rows = _unit(rows)
    scores: F32 = rows[asked] @ rows.T
    if metric == "l2":
        scores -= (rows**2).sum(axis=1) / 2
    scores[np.arange(len(asked)), asked] = -np.inf
    found: npt.NDArray[np.int64] = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return found


def smallest(table: TableSpec, sample: Sample, seed: int) -> int:
    """Bytes of the smallest form that can be fitted."""
    quick = Effort(8, 1, 1_024, 1_024, 1)
    stairs = staircase(table, sample, quick, seed)
    sizes = [nbytes(spec) for spec in rows_specs(table, sample.zeros > 0)]
    low, high = 1, min(sizes)
    while low < high:  # the least budget that some codes fit
        middle = (low + high) // 2
        if plan_coded(table, middle, sample, Form(0, sample.zeros > 0), quick, stairs) is None:
            low = middle + 1
        else:
            high = middle
    return high
