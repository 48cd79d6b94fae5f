"""Pictures of what compression lost: error by rank, quality by bytes, and the rows in two dimensions before and after."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.codec.allocation import error_bound
from hfh_embed.container import replacing
from hfh_embed.dense import DenseRows
from hfh_embed.errors import InputError, MissingDependencyError
from hfh_embed.fidelity import Fidelity, row_errors
from hfh_embed.lookup import Table

__all__ = ["Measured", "Spectrum", "check_plot", "plot_fidelity"]

F64 = npt.NDArray[np.float64]
BINS = 60
FORMATS = (".png", ".svg", ".pdf")
RANKED_ROWS, SHOWN_ROWS, SPECTRUM_ROWS = 200_000, 1_500, 65_536


@dataclass(frozen=True)
class Measured:
    """A compressed table and what it lost."""

    name: str
    table: Table
    nbytes: int
    fidelity: Fidelity


@dataclass(frozen=True)
class Spectrum:
    """A dense table's variances along its principal axes (D,), the axes (D, D) as columns, its centre (D,) and mean squared length."""

    variance: F64
    axes: F64
    centre: F64
    energy: float

    @staticmethod
    def of(dense: DenseRows, seed: int = 0) -> Spectrum:
        """From at most SPECTRUM_ROWS rows."""
        rows = np.asarray(dense[_some(dense.shape[0], SPECTRUM_ROWS, seed)], dtype=np.float64)
        centre = rows.mean(axis=0)
        variance, axes = np.linalg.eigh((rows - centre).T @ (rows - centre) / len(rows))
        return Spectrum(np.maximum(variance[::-1], 0), axes[:, ::-1], centre, float((rows**2).sum(axis=1).mean()))

    def bound(self, bits: float) -> float:
        """The rate-distortion bound of the relative error at so many bits a row, for Gaussian rows of these variances."""
        return error_bound(self.variance, bits) / self.energy if self.energy else 0.0


def check_plot(path: Path) -> None:
    """Whether a plot can be drawn to this file; an error otherwise, before anything was measured."""
    if path.suffix not in FORMATS:
        raise InputError(f"the plot {str(path)!r} must end in one of {', '.join(FORMATS)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingDependencyError("plots need matplotlib; install it with: pip install 'hfh-embed[plot]'") from None


def plot_fidelity(
    path: Path,
    dense: DenseRows,
    measured: Sequence[Measured],
    spectrum: Spectrum,
    frequencies: npt.NDArray[np.number] | None = None,
    seed: int = 0,
) -> None:
    """Draw the first of the compressed tables by rank and in two dimensions, and all of them by bytes."""
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.4), layout="constrained")
    by_rank, by_bytes, in_plane = figure.subplots(1, 3)
    table = measured[0].table
    figure.suptitle(f"{table.name}: {table.num_embeddings:,} rows of {table.embedding_dim}")
    _draw_ranks(by_rank, table, dense, frequencies, seed)
    _draw_bytes(by_bytes, measured, spectrum)
    _draw_plane(in_plane, table, dense, spectrum, seed)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)


def _some(count: int, most: int, seed: int) -> npt.NDArray[np.int64]:
    """Ascending ids: all, or a sample."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def _draw_ranks(
    axes: Any, table: Table, dense: DenseRows, frequencies: npt.NDArray[np.number] | None, seed: int
) -> None:
    """Relative error by the rank of ids, the most frequent or the longest first."""
    ids = _some(dense.shape[0], RANKED_ROWS, seed)
    _, error, energy = row_errors(table, dense, ids=ids)
    relative = np.divide(error, energy, out=np.zeros_like(error), where=energy > 0)
    worth = energy if frequencies is None else np.asarray(frequencies, dtype=np.float64)[ids]
    ranked = relative[np.argsort(-worth, kind="stable")]
    edges = np.unique(np.geomspace(1, len(ranked) + 1, BINS).astype(int)) - 1
    bins = [ranked[a:b] for a, b in itertools.pairwise(edges)] or [ranked]
    middle = [(a + b + 1) / 2 for a, b in itertools.pairwise(edges)] or [1]
    low, high = ([np.quantile(part, share) for part in bins] for share in (0.1, 0.9))
    axes.fill_between(middle, low, high, alpha=0.25, label="10 % to 90 % of the rows")
    axes.plot(middle, [np.median(part) for part in bins], label="median")
    axes.set(xscale="log", ylim=(0, None), ylabel="squared error / squared length", title="error by rank")
    axes.set_xlabel("rank by frequency" if frequencies is not None else "rank by length")
    axes.legend()


def _draw_bytes(axes: Any, measured: Sequence[Measured], spectrum: Spectrum) -> None:
    """Relative error and recall by stored bytes, with the bound."""
    order = sorted(measured, key=lambda one: one.nbytes)
    nbytes = np.array([one.nbytes for one in order])
    count = order[0].table.num_embeddings
    range_ = np.geomspace(nbytes[0] / 2, nbytes[-1] * 2, 50)
    axes.plot(range_, [spectrum.bound(8 * b / count) for b in range_], "k--", lw=1, label="rate-distortion bound")
    axes.plot(nbytes, [one.fidelity.relative_error for one in order], "o-", label="relative error")
    axes.set(xscale="log", ylim=(0, None), xlabel="stored bytes", ylabel="relative error", title="quality by bytes")
    for one in order:
        axes.annotate(f"{one.name}", (one.nbytes, one.fidelity.relative_error), fontsize=7, rotation=20)
    recall = axes.twinx()
    recall.errorbar(
        nbytes,
        [one.fidelity.recall_at_10 for one in order],
        [one.fidelity.recall_margin for one in order],
        fmt="s-",
        color="tab:green",
        label="recall@10",
    )
    recall.set(ylim=(0, 1), ylabel="recall@10")
    handles, labels = (
        a + b for a, b in zip(axes.get_legend_handles_labels(), recall.get_legend_handles_labels(), strict=True)
    )
    axes.legend(handles, labels, loc="center right")


def _draw_plane(axes: Any, table: Table, dense: DenseRows, spectrum: Spectrum, seed: int) -> None:
    """Some rows along the first two principal axes, before and after, each pair joined."""
    ids = _some(dense.shape[0], SHOWN_ROWS, seed)
    plane = spectrum.axes[:, :2]
    if plane.shape[1] < 2:
        plane = np.pad(plane, ((0, 0), (0, 1)))
    before = (np.asarray(dense[ids], dtype=np.float64) - spectrum.centre) @ plane
    after = (table.lookup(ids) - spectrum.centre) @ plane
    lines = np.stack((before, after, np.full_like(before, np.nan)), axis=1).reshape(-1, 2)
    axes.plot(*lines.T, color="0.8", lw=0.5, zorder=1)
    axes.scatter(*before.T, s=5, label="dense", zorder=2)
    axes.scatter(*after.T, s=5, label="compressed", zorder=3)
    axes.set(xlabel="first principal axis", ylabel="second", title=f"{len(ids):,} rows before and after")
    axes.legend()
