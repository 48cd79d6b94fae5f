"""Rows of runs as a Markdown table and as plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hfh_embed.container import replacing
from hfh_embed.errors import InputError, MissingDependencyError
from hfh_embed.plots import FORMATS

__all__ = ["best", "plot", "plot_curves", "table"]

Row = dict[str, Any]


def best(rows: Sequence[Row]) -> list[Row]:
    """Of each method and ratio the rows with the rate and deviation that were best with seed 0, one a seed."""
    chosen: list[Row] = []
    for method, ratio in dict.fromkeys((row["method"], row["ratio"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["ratio"]) == (method, ratio)]
        first = min((row for row in mine if row["seed"] == 0), key=lambda row: row["perplexity"])
        chosen += [row for row in mine if (row["rate"], row["std"]) == (first["rate"], first["std"])]
    return chosen


def table(rows: Sequence[Row], bpe: int = 0) -> str:
    """The runs of one vocabulary as Markdown, best first at each ratio."""
    rows = best([row for row in rows if row["bpe"] == bpe])
    dense = np.mean([row["perplexity"] for row in rows if row["method"] == "dense"])
    lines = [
        "| ratio | words are | bytes | perplexity | above dense | tokens/s | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for ratio in sorted({row["ratio"] for row in rows}):
        here = [row for row in rows if row["ratio"] == ratio]
        methods = {row["method"]: [other for other in here if other["method"] == row["method"]] for row in here}
        for mine in sorted(methods.values(), key=lambda mine: np.mean([row["perplexity"] for row in mine])):
            scores = [row["perplexity"] for row in mine]
            spread = f" ± {np.std(scores, ddof=1):.1f} ({len(scores)} seeds)" if len(scores) > 1 else ""
            first = mine[0]
            lines.append(
                f"| {first['real_ratio']:.1f}× | {first['title']} | {first['nbytes']:,} | {np.mean(scores):.1f}{spread} | "
                f"{(np.mean(scores) / dense - 1) * 100:+.1f} % | {first['tokens_per_s']:,} | {first['peak_bytes'] / 1e6:,.0f} MB |"
            )
    return "\n".join(lines)


def plot(rows: Sequence[Row], folder: Path) -> None:
    """Draw perplexity by bytes and perplexity over time, of the first seed, into a folder, as SVG."""
    rows = [row for row in best([row for row in rows if row["bpe"] == 0]) if row["seed"] == 0]
    folder.mkdir(parents=True, exist_ok=True)
    figure = _figure()
    axes = figure.add_subplot()
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = sorted((row for row in rows if row["method"] == method), key=lambda row: row["nbytes"])
        axes.plot([r["nbytes"] / 1e6 for r in mine], [r["perplexity"] for r in mine], "o-", label=mine[0]["title"])
    axes.set(xscale="log", xlabel="MB of the vocabulary's table", ylabel="validation perplexity")
    axes.legend(fontsize="small")
    _save(figure, folder / "language-models-bytes.svg")
    plot_curves(rows, folder / "language-models-time.svg")


def plot_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw perplexity over the seconds of training into one file."""
    figure = _figure()
    axes = figure.add_subplot()
    for row in rows:
        points = row["curve"]
        label = row["title"] if row["method"] == "dense" else f"{row['title']}, {row['ratio']:g}×"
        axes.plot([p["seconds"] for p in points], [p["perplexity"] for p in points], ".-", label=label)
    axes.set(yscale="log", xlabel="processor seconds of training", ylabel="validation perplexity")
    axes.legend(fontsize="x-small")
    _save(figure, path)


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("plots need matplotlib; install it with: pip install 'hfh-embed[plot]'") from None
    return Figure(figsize=(7.5, 4.5), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    if path.suffix not in FORMATS:
        raise InputError(f"the plot {str(path)!r} must end in one of {', '.join(FORMATS)}")
    from matplotlib import rc_context

    # The same rows give the same bytes.
    with rc_context({"svg.hashsalt": "hfh"}), replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
