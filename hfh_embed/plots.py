"""Pictures of what compression lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from hfh_embed.container import replacing
from hfh_embed.dense import DenseRows
from hfh_embed.errors import InputError, MissingDependencyError
from hfh_embed.fidelity import row_errors
from hfh_embed.lookup import Table

__all__ = ["plot_errors"]

BINS = 60
FORMATS = (".png", ".svg", ".pdf")


def plot_errors(table: Table, dense: DenseRows, path: Path, frequencies: npt.NDArray[np.number] | None = None) -> None:
    """Draw the relative error of rows by their frequency, or by their id's rank where frequencies are not known."""
    if path.suffix not in FORMATS:
        raise InputError(f"the plot {str(path)!r} must end in one of {', '.join(FORMATS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("plots need matplotlib; install it with: pip install 'hfh-embed[plot]'") from None
    _, error, energy = row_errors(table, dense)
    relative = np.divide(error, energy, out=np.zeros_like(error), where=energy > 0)
    if frequencies is None:
        place, label = np.arange(1, len(relative) + 1, dtype=np.float64), "rank of the id"
    else:
        place, label = np.maximum(np.asarray(frequencies, dtype=np.float64), 1), "frequency of the id"
    order = np.argsort(place, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    middle = [np.median(place[part]) for part in bins]
    axes.fill_between(
        middle,
        [np.quantile(relative[part], 0.1) for part in bins],
        [np.quantile(relative[part], 0.9) for part in bins],
        alpha=0.25,
        label="10 % to 90 % of the rows",
    )
    axes.plot(middle, [np.median(relative[part]) for part in bins], label="median")
    axes.set(xscale="log", ylim=(0, None), xlabel=label, ylabel="squared error / squared length")
    axes.set_title(f"{table.name}: {table.num_embeddings:,} rows of {table.embedding_dim}")
    axes.legend()
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)
