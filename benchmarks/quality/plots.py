"""Quality against bytes: one line for each method, bars for the spread over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure

from benchmarks.quality.methods import FULLS, OURS

if TYPE_CHECKING:
    from benchmarks.quality.report import Cells

__all__ = ["plot"]

MARKS = "osD^vP*Xhd<>8p"


def plot(cells: Cells, dataset: str, metric: str, title: str, path: Path) -> None:
    """Write the plot of one data set as SVG; the same rows give the same file."""
    matplotlib.rcParams["svg.hashsalt"] = dataset
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for full, style in zip(FULLS, ("--", ":", "-."), strict=True):
        if (dense := cells.figure(dataset, full, 1, metric)) is not None:
            axes.axhline(dense.mean, color="black", linestyle=style, linewidth=1, label=full)
    for number, method in enumerate(name for name in cells.methods(dataset) if name not in FULLS):
        found = [cells.figure(dataset, method, ratio, metric) for ratio in cells.ratios(dataset)]
        points = sorted(
            (point.rows[0]["nbytes"], point.mean, point.sd if len(point.values) > 1 else 0.0)
            for point in found
            if point is not None
        )
        if not points:
            continue
        nbytes, means, spreads = zip(*points, strict=True)
        ours = method in OURS
        axes.errorbar(
            nbytes,
            means,
            yerr=spreads,
            label=method,
            marker=MARKS[number % len(MARKS)],
            markersize=5,
            linewidth=2 if ours else 1,
            alpha=1 if ours else 0.6,
            capsize=2,
        )
    axes.set_xscale("log")
    axes.set_xlabel("stored bytes of all tables")
    axes.set_ylabel(f"{title}, test")
    axes.set_title(dataset)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, metadata={"Date": None})
