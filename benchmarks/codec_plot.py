"""Relative error and neighbours kept against the real ratio, a column of the picture for each table, from the rows of benchmarks.codec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

__all__ = ["PLOT", "draw"]

PLOT = Path(__file__).parent.parent / "docs" / "plots" / "codec.svg"
OURS = "hfh compress"
MARKS = "osD^vP"


def draw(rows: Sequence[dict[str, Any]], titles: dict[str, str], path: Path = PLOT) -> None:
    """Write the picture; the same rows give the same file."""
    matplotlib.rcParams["svg.hashsalt"] = "codec"
    figure = Figure(figsize=(3 * len(titles), 6), layout="constrained")
    axes = figure.subplots(2, len(titles), sharex=True, sharey="row")
    for column, (table, title) in enumerate(titles.items()):
        mine = [row for row in rows if row["table"] == table and "relative_error" in row]
        for line, figures in enumerate(("relative_error", "recall_at_10")):
            for number, method in enumerate(dict.fromkeys(row["method"] for row in rows if "relative_error" in row)):
                points = sorted((row["real_ratio"], row[figures]) for row in mine if row["method"] == method)
                axes[line, column].plot(
                    *zip(*points, strict=True) if points else ((), ()),
                    label=method,
                    marker=MARKS[number % len(MARKS)],
                    markersize=4,
                    linewidth=2 if method == OURS else 1,
                    alpha=1 if method == OURS else 0.7,
                )
        bound = sorted({row["ratio"]: row["bound"] for row in mine}.items())
        axes[0, column].plot(*zip(*bound, strict=True), label="bound", color="black", linestyle="--", linewidth=1)
        axes[0, column].set_title(title, fontsize=9)
        axes[1, column].set_xlabel("times smaller")
        for axis in axes[:, column]:
            axis.set_xscale("log", base=2)
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("relative error")
    axes[1, 0].set_ylabel("recall@10")
    axes[0, 0].legend(fontsize=7)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
