"""Rows as codes: stages of whole-row codebooks, a trellis over the principal axes of what they leave, and a map back.

Fitted on a sample, then any rows are encoded, block by block. ``plan_coded`` finds the most bits a row that a number of bytes allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hfh_embed.codec.allocation import error_bound, runs_for
from hfh_embed.codec.codebooks import STAGE_BITS, STAGE_CODES, Search, Stages, Staircase, beam_for, kmeans_1d
from hfh_embed.codec.stored import StoredFit, nearest_factors
from hfh_embed.codec.transform import Axes, bands_for, principal_axes, quantise_map
from hfh_embed.codec.trellis import FARTHEST, LARGEST, Books, encode_rings, fit_books
from hfh_embed.layout import TableData, table_arrays
from hfh_embed.spec import CodeChunk, CodedSpec, ExactSpec, MapSpec, TableSpec, TrellisSpec

__all__ = ["CodedPlan", "Effort", "Form", "fit_coded", "nbytes", "plan_coded", "staircase"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Progress = Callable[[int, int, str], None]
POWER = 1.25
"""Bits follow variance ** POWER: a little above 1 costs hardly any error and keeps more true neighbours."""

LEAST_STATE_BITS = 8
BOOK_SHARE = 0.004
"""A trellis has more states the more rows share its books: these take about this share of the bytes."""

MAP_ROWS_EACH = 16
"""Rows that the map is fitted to, for each of its own."""

CENTRE_SHARE = 0.002


@dataclass(frozen=True)
class Effort:
    """How hard to search: states of the trellis (as bits), rounds and rows of fitting its books, rows of fitting axes and stages."""

    state_bits: int
    rounds: int
    rows: int
    stage_rows: int
    threads: int


@dataclass(frozen=True)
class Form:
    """What codes are made of: how many stages, and whether each id has a factor of its own."""

    stages: int
    norms: bool
    exact: ExactSpec | None = None


@dataclass(frozen=True)
class Sample:
    """Rows to fit to (n, D), float32, with weights (n,) of mean 1, and how many rows of the table are zeros, which must stay zero."""

    rows: F32
    weights: F64
    zeros: int = 0


@dataclass(frozen=True)
class CodedPlan:
    """A form within its bytes: the table, and what was learnt from the sample on the way."""

    table: TableSpec
    form: Form
    axes: Axes
    centroids: list[F32]
    """Of each stage, in the rows' own space (STAGE_CODES, D)."""
    members: list[F64]
    """Of each stage, how many rows of the sample are nearest to each centroid (STAGE_CODES,)."""


def nbytes(table: TableSpec) -> int:
    """Stored bytes of one table."""
    return sum(array.nbytes for array in table_arrays(table).values())


def staircase(table: TableSpec, sample: Sample, effort: Effort, seed: int) -> Staircase:
    """The stages of a sample, for plans of this table and effort."""
    rows, weights = sample.rows[: effort.stage_rows], sample.weights[: effort.stage_rows]
    return Staircase(rows, weights, seed, beam_for(table), effort.threads)


def plan_coded(
    table: TableSpec, budget: int, sample: Sample, form: Form, effort: Effort, stairs: Staircase
) -> CodedPlan | None:
    """The most bits a row that ``budget`` bytes allow for this form; None when they do not suffice."""
    sample = Sample(sample.rows[: effort.stage_rows], sample.weights[: effort.stage_rows])
    centroids, members, rows = stairs.stages(form.stages)
    if form.norms:
        rows = _unit(sample.rows)
    axes = principal_axes(rows, sample.weights, centred=form.stages == 0)
    if not axes.variance.max() > 0:
        return None
    spread = float(np.std(np.log(np.maximum(np.linalg.norm(sample.rows, axis=1), 1e-30)))) if form.norms else 0.0
    low, high, best = 1, 9 * table.embedding_dim, None
    while low <= high:
        bits = (low + high) // 2
        spec = _spec(table, budget, form, axes, centroids, bits, spread, effort)
        if spec is not None and nbytes(spec) <= budget:
            best, low = spec, bits + 1
        else:
            high = bits - 1
    return None if best is None else CodedPlan(best, form, axes, centroids, members)


def _spec(
    table: TableSpec,
    budget: int,
    form: Form,
    axes: Axes,
    centroids: list[F32],
    bits: int,
    spread: float,
    effort: Effort,
) -> TableSpec | None:
    n, dim = table.num_embeddings, table.embedding_dim
    runs = runs_for(axes.variance, bits, POWER)
    if not runs:
        return None
    ring_bits = sum(run.steps * run.bits for run in runs)
    books, longest = sum(run.entries for run in runs), max(run.bits for run in runs)
    affordable = int(np.log2(max(BOOK_SHARE * budget / books, 2)))
    state_bits = min(max(longest, min(max(affordable, LEAST_STATE_BITS), effort.state_bits)), ring_bits)
    norm_bits, constant = 0, False
    if form.norms:
        energy = float(axes.variance.sum() + (axes.centre**2).sum())
        error = max(error_bound(axes.variance, bits) / energy, 1e-6)
        norm_bits = int(np.clip(np.ceil(0.5 * np.log2(max(60 * spread**2 / error, 1))), 2, 8))
        constant = bool((axes.centre**2).sum() > CENTRE_SHARE * energy)
    trellis = TrellisSpec(runs, state_bits, 16 if longest > 5 else 8, norm_bits, constant)
    rate = np.repeat([run.bits / run.entries for run in runs], [run.steps * run.entries for run in runs])
    if form.stages:
        energy_along = sum(((book @ axes.axes.T) ** 2).mean(axis=0) for book in centroids)
        useful = np.flatnonzero(energy_along * n > error_bound(axes.variance, bits))
        rate = np.concatenate((rate, np.zeros(max(0, (int(useful[-1]) + 1 if len(useful) else 0) - len(rate)))))
    share = 0.5 * np.log2(max(n / dim, 1))
    wanted = rate + share + 0.5
    if constant:
        wanted = np.append(wanted, 8)
    coded = None
    if form.stages:
        book_bits = 4 if 0.5 * np.log2(max(n / STAGE_CODES, 1)) < 5 else 8
        coded = CodedSpec(tuple(CodeChunk(0, len(rate), STAGE_BITS) for _ in range(form.stages)), book_bits)
    linear = MapSpec(8, bias=form.stages == 0 and not form.norms, bands=bands_for(wanted))
    return table.replace(
        coded=coded, trellis=trellis, private=None, exact=form.exact, map=linear, latent_dim=len(wanted)
    )


def _unit(rows: F32) -> F32:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


@dataclass(frozen=True)
class _Draft:
    """Stages, books and factors, before there is a map."""

    table: TableSpec
    deviation: F64
    """(entries of the trellis,): what rows along the axes are divided by."""
    stages: Stages
    books: Books
    norms: F32 | None
    threads: int

    def latent(self, rows: F32, along: F32, search: Search | None, matrix: F32) -> F32:
        """The latent rows (n, R) that rows (n, D), ``along`` the axes (n, R), are described by; ``matrix`` (R, D) leads back."""
        trellis = self.table.trellis
        assert trellis is not None
        _, rest, latent = self.stages.encode(along, search)
        states = encode_rings(
            (rest[:, : trellis.entries] / self.deviation).astype(np.float32),
            trellis,
            self.books.values * self.books.unit,
            self.deviation**2 / max(float((self.deviation**2).mean()), 1e-300),
            self.threads,
        )
        latent[:, : trellis.entries] += self.books.decode(states)
        if trellis.constant:
            latent = np.concatenate((latent, np.ones((len(latent), 1), dtype=np.float32)), axis=1)
        if self.norms is not None:
            latent = latent * self.norms[nearest_factors(rows, latent @ matrix, self.norms)][:, None]
        return latent


def fit_coded(plan: CodedPlan, sample: Sample, effort: Effort, seed: int, tell: Progress) -> StoredFit:
    """Fit books, factors and the map of a plan to the sample."""
    table, axes, form = plan.table, plan.axes, plan.form
    trellis, linear = table.trellis, table.map
    assert trellis is not None and linear is not None
    width = table.latent_dim - trellis.constant
    project = axes.axes[:width].T.astype(np.float32)
    deviation = np.sqrt(np.maximum(axes.variance[: trellis.entries], 1e-30))
    centre = axes.centre.astype(np.float32)
    rows = sample.rows[: max(effort.rows, MAP_ROWS_EACH * table.latent_dim)]
    weights = sample.weights[: len(rows)]
    along = (((_unit(rows) if form.norms else rows) - centre) @ project).astype(np.float32)
    unit = np.sqrt(np.maximum(axes.variance[:width], 1e-30)) * (FARTHEST / LARGEST[trellis.value_bits])
    books = [(book @ project).astype(np.float32) for book in plan.centroids]
    bits = table.coded.codebook_bits if table.coded is not None else 8
    stages = Stages.store(books, plan.members, unit, bits)
    search = stages.search(beam_for(table), effort.threads)
    _, rest, _ = stages.encode(along, search)
    few = slice(0, effort.rows)
    fitted = fit_books(
        (rest[few, : trellis.entries] / deviation).astype(np.float32),
        weights[few],
        trellis,
        deviation**2 / max(float((deviation**2).mean()), 1e-300),
        effort.rounds,
        seed,
        effort.threads,
        tell,
    )
    matrix = unit[:, None] * axes.axes[:width]
    if trellis.constant:
        matrix = np.concatenate((matrix, axes.centre[None]))
    norms = _norms(rows, trellis.norm_bits, sample.zeros > 0) if form.norms else None
    latent = _Draft(table, deviation, stages, fitted, norms, effort.threads).latent(
        rows, along, search, matrix.astype(np.float32)
    )
    target = rows - (centre if linear.bias else np.float32(0))
    solved = _least_squares(latent, target, weights, matrix)
    arrays = quantise_map(solved, linear.bands) | stages.arrays | {"trellis.values": fitted.values}
    if norms is not None:
        arrays["trellis.norms"] = norms
    if linear.bias:
        arrays["map.bias"] = centre
    return StoredFit(TableData(table, None, arrays), effort.threads)


def _norms(rows: F32, bits: int, zero: bool) -> F32:
    """Factors for rows of these lengths: 0 where the table has rows of zeros, the others by equal ratios."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    some = lengths[lengths > 0]
    count = (1 << bits) - zero
    centres = np.exp(kmeans_1d(np.log(some if len(some) else np.ones(1)), np.ones(max(len(some), 1)), count))
    return np.concatenate((np.zeros(int(zero)), centres)).astype(np.float32)


def _least_squares(latent: F32, rows: F32, weights: F64, near: F64) -> F64:
    """The map (R, D) that turns latent rows back with the least weighted error, drawn towards ``near``."""
    scale = np.sqrt(np.maximum((latent.astype(np.float64) ** 2).mean(axis=0), 1e-30))
    scaled = latent / scale
    weighted = scaled * weights[:, None]
    gram = scaled.T @ weighted
    ridge = 1e-4 * max(np.trace(gram) / len(gram), 1e-12)
    goal = weighted.T @ rows + ridge * (near * scale[:, None])
    solved: F64 = np.linalg.solve(gram + ridge * np.eye(len(gram)), goal) / scale[:, None]
    return solved
