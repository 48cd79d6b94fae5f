"""Tables and plots of docs/results.md from the committed rows: python -m benchmarks.quality report

The page's prose is written by hand; what stands between ``<!-- name -->`` and ``<!-- end -->`` is made here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.methods import (
    ABLATION,
    AFTER_SGD,
    AFTERWARDS,
    BY_FREQUENCY,
    BY_RATIO,
    COMPARED,
    DROPPING,
    FULL,
    FULL_SGD,
    FULLS,
    OURS,
    PEERS,
    TAUGHT,
)
from benchmarks.quality.runner import DATASETS

__all__ = ["PAGE", "Cells", "write"]

PAGE = Path(__file__).parent.parent.parent / "docs" / "results.md"
MAY_LOSE = {
    8: (0, 1),
    10: (0, 1),
    16: (0, 1),
    32: (0, 1),
    64: (0.003, 2),
    100: (0.003, 2),
    300: (0.02, 8),
    1000: (0.06, 25),
}
"""What was aimed at on the first data set: ratio -> AUC that may be lost, and per cent of NDCG."""
GOALS = {
    "completejourney": ("auc", "ndcg"),
    "amazon_book": ("ndcg", "recall"),
    "beauty": ("ndcg", "hr"),
}
TITLES = {
    ("completejourney", "auc"): "AUC",
    ("completejourney", "ndcg"): "NDCG@10 of a trip",
    ("amazon_book", "ndcg"): "NDCG@20",
    ("amazon_book", "recall"): "recall@20",
    ("beauty", "ndcg"): "NDCG@10",
    ("beauty", "hr"): "HR@10",
}


@dataclass(frozen=True)
class Figure:
    """Test figures of one cell over its seeds, with the rows that they come from."""

    values: tuple[float, ...]
    rows: tuple[dict[str, Any], ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def sd(self) -> float:
        """Standard deviation over the seeds, nan for one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.sd:.4f}" if len(self.values) > 1 else "")


class Cells:
    """The rows, one a cell and seed: of several learning rates the one that was best on the validation split with seed 0.

    What is compressed after training has the full table's.
    """

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.rows = list(rows)
        grouped: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
        for row in self.rows:
            if "valid" in row:
                grouped[row["dataset"], row["method"], float(row["ratio"])].append(row)
        self._cells: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
        for key, mine in grouped.items():
            dataset, method, _ = key
            judged = mine
            if method in (*AFTERWARDS, *AFTER_SGD):
                judged = grouped.get((dataset, FULL if method in AFTERWARDS else FULL_SGD, 1.0), [])
            first = [row for row in judged if row["seed"] == 0]
            if first:
                rate = max(first, key=lambda row: row["valid"])["rate"]
                self._cells[key] = list({row["seed"]: row for row in mine if row["rate"] == rate}.values())

    def figure(self, dataset: str, method: str, ratio: float, metric: str) -> Figure | None:
        """A cell's figure, None where it was not run."""
        rows = self._cells.get((dataset, method, 1.0 if method in FULLS else float(ratio)))
        if not rows:
            return None
        rows = sorted(rows, key=lambda row: row["seed"])
        return Figure(tuple(row["test"][metric] for row in rows), tuple(rows))

    def unreachable(self, dataset: str, method: str, ratio: float) -> bool:
        """Whether the method has no form of this ratio."""
        return any(
            "unreachable" in row
            for row in self.rows
            if (row["dataset"], row["method"], float(row["ratio"])) == (dataset, method, float(ratio))
        )

    def ratios(self, dataset: str) -> list[float]:
        """The ratios that something was run at, from small to large."""
        return sorted({ratio for name, method, ratio in self._cells if name == dataset and method not in FULLS})

    def methods(self, dataset: str) -> list[str]:
        """The methods that were run, in the order of their list, without those of the ablation."""
        run = {method for name, method, _ in self._cells if name == dataset}
        return [method for method in COMPARED if method in run]

    def spread(self, dataset: str, metric: str) -> float:
        """Standard deviation of one run over seeds, pooled over the cells that have several; nan where none has."""
        figures = [self.figure(name, method, ratio, metric) for name, method, ratio in self._cells if name == dataset]
        variances = [figure.sd**2 for figure in figures if figure is not None and len(figure.values) > 1]
        return float(np.sqrt(np.mean(variances))) if variances else float("nan")


def summary(cells: Cells) -> str:
    """Where what `ratio` picks stands, alone against peers as published, with `frequencies` also against those that drop ids by them.

    These are all trained in so few bytes; the best of all forms and of all peers may also be compressed after training.
    """
    small = [peer for peer in PEERS if peer not in AFTERWARDS]
    lines = [
        "| data set | ratio | full table | best peer as published | `ratio` alone | against it "
        "| best peer, kept ids too | `ratio` and `frequencies` | against it | HFH's best form | best of all peers | against it |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for dataset in DATASETS:
        metric = GOALS[dataset][0]
        full = _best(cells, dataset, 1, [FULL, FULL_SGD], metric)
        for ratio in cells.ratios(dataset):
            published = _best(cells, dataset, ratio, [p for p in small if p not in DROPPING], metric)
            peer = _best(cells, dataset, ratio, small, metric)
            any_peer = _best(cells, dataset, ratio, list(PEERS), metric)
            best = _best(cells, dataset, ratio, list(OURS), metric)
            if published is None or peer is None or any_peer is None or best is None:
                continue
            spread = cells.spread(dataset, metric)
            row = [f"{dataset}, {TITLES[dataset, metric]}", f"{ratio:g}×", full[1] if full else "—"]
            for rival, name in ((published, BY_RATIO), (peer, BY_FREQUENCY)):
                ours = _best(cells, dataset, ratio, _trained(name), metric)
                row += [f"{rival[0]}: {rival[1]}"]
                row += ["—", "—"] if ours is None else [f"{ours[0]}: {ours[1]}", _verdict(ours[1], rival[1], spread)]
            row += [f"{best[0]}: {best[1]}", f"{any_peer[0]}: {any_peer[1]}", _verdict(best[1], any_peer[1], spread)]
            lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def _trained(method: str) -> list[str]:
    """The method by Adam and by gradient descent, of which validation picks one, as it does of a peer's."""
    return [method, f"{method}, SGD"]


def _best(cells: Cells, dataset: str, ratio: float, methods: list[str], metric: str) -> tuple[str, Figure] | None:
    """The method whose first seed validated best: picked without looking at the test split."""
    found = [(method, cells.figure(dataset, method, ratio, metric)) for method in methods]
    there = [(method, figure) for method, figure in found if figure is not None]
    return max(there, key=lambda item: np.mean([row["valid"] for row in item[1].rows]), default=None)


def _verdict(ours: Figure, peer: Figure, spread: float) -> str:
    difference = ours.mean - peer.mean
    seeds = min(len(ours.values), len(peer.values))
    error = spread * np.sqrt(1 / len(ours.values) + 1 / len(peer.values))
    if np.isnan(error):
        word = "ahead" if difference > 0 else "behind"
    elif abs(difference) <= error:
        word = "tie"
    else:
        word = "**wins**" if difference > 0 else "**loses**"
    return f"{word}, {difference:+.4f} ({seeds} seed{'s' if seeds > 1 else ''})"


def comparison(cells: Cells, dataset: str) -> str:
    """Every method at every ratio on one data set, the first figure; a dash where it was not run yet."""
    metric = GOALS[dataset][0]
    ratios = cells.ratios(dataset)
    lines = [
        f"| {TITLES[dataset, metric]} | {' | '.join(f'{ratio:g}×' for ratio in ratios)} |",
        f"|---|{'---|' * len(ratios)}",
    ]
    for method in cells.methods(dataset):
        figures = []
        for ratio in ratios:
            figure = cells.figure(dataset, method, ratio, metric)
            none = "cannot" if cells.unreachable(dataset, method, ratio) else "—"
            figures.append(str(figure) if figure is not None else none)
        lines.append(f"| {_bold(method)} | {' | '.join(figures)} |")
    return "\n".join(lines)


def costs(cells: Cells, dataset: str, ratio: float) -> str:
    """Second figure, exact bytes, training time and memory, lookup time at one ratio, with the full table."""
    goal, second = GOALS[dataset]
    lines = [
        f"| {ratio:g}× | {TITLES[dataset, goal]} | {TITLES[dataset, second]} | bytes | reached | learning rate | epochs (best) "
        "| CPU s | training bytes of the table | peak memory | ns a row |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in cells.methods(dataset):
        figure = cells.figure(dataset, method, ratio, goal)
        other = cells.figure(dataset, method, ratio, second)
        if figure is None or other is None:
            continue
        row = figure.rows[0]
        cpu = np.mean([r["cpu_s"] for r in figure.rows])
        lines.append(
            f"| {_bold(method)} | {figure} | {other} | {row['nbytes']:,} | {row['reached']:g}× | {row['rate']:g} "
            f"| {row['epochs']} ({row['epoch']}) | {cpu:.0f} | {row['train_bytes']:,} | {row['peak_bytes'] / 1e6:.0f} MB "
            f"| {row['lookup_ns']:.0f} |"
        )
    return "\n".join(lines)


def ablation(cells: Cells, dataset: str, ratio: float) -> str:
    """What each change of the plain line costs and buys; only what was run."""
    metric = GOALS[dataset][0]
    base = cells.figure(dataset, "hfh line", ratio, metric)
    lines = [
        f"| {dataset}, {ratio:g}× | {TITLES[dataset, metric]} | against the line | ns a row | CPU s | training bytes of the table | bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[str, Iterable[str]] = {"": ("hfh line", "hfh line, 16 words")} | dict(ABLATION)
    for group, methods in groups.items():
        for method in methods:
            figure = cells.figure(dataset, method, ratio, metric)
            if figure is None or base is None:
                continue
            row = figure.rows[0]
            lines.append(
                f"| {group + ': ' if group else ''}{method} | {figure} | {figure.mean - base.mean:+.4f} "
                f"| {row['lookup_ns']:.0f} | {row['cpu_s']:.0f} | {row['train_bytes']:,} | {row['nbytes']:,} |"
            )
    return "\n".join(lines)


def losses(cells: Cells) -> str:
    """What the first data set's AUC and NDCG lose against its full table, beside what they may lose."""
    full = _best(cells, DATASETS[0], 1, [FULL, FULL_SGD], "auc")
    ways = [
        ("`ratio` alone", lambda ratio: _trained(BY_RATIO)),
        ("`ratio` and `frequencies`", lambda ratio: _trained(BY_FREQUENCY)),
        ("and distilled", lambda ratio: list(TAUGHT)),
        ("compressed after training, kept ids", lambda ratio: [AFTER_SGD[1]]),
    ]
    titles = [f"{metric}: {way}" for metric in ("AUC", "NDCG") for way, _ in ways]
    lines = [f"| ratio | may lose | {' | '.join(titles)} |", f"|---|---|{'---|' * len(titles)}"]
    for ratio, (auc, ndcg) in MAY_LOSE.items():
        row = [f"{ratio}×", f"{auc:g} AUC, {ndcg} % of NDCG"]
        for metric in ("auc", "ndcg"):
            whole = cells.figure(DATASETS[0], full[0], 1, metric) if full else None
            for _, methods in ways:
                picked = _best(cells, DATASETS[0], ratio, methods(ratio), "auc")
                figure = cells.figure(DATASETS[0], picked[0], ratio, metric) if picked else None
                if figure is None or whole is None:
                    row.append("—")
                elif metric == "auc":
                    row.append(f"{whole.mean - figure.mean:.4f} ({len(figure.values)})")
                else:
                    row.append(f"{100 * (1 - figure.mean / whole.mean):.1f} %")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def confirmed(cells: Cells) -> str:
    """What was run on whole data sets, not on a draw."""
    lines = [
        "| data set | method | ratio | first figure | second figure | bytes | epochs (best) | CPU s | training bytes of the table |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(
        (row for row in cells.rows if "test" in row),
        key=lambda row: (row["dataset"], row["ratio"], list(COMPARED).index(row["method"])),
    ):
        figures = [f"{TITLES[row['dataset'], metric]} {row['test'][metric]:.4f}" for metric in GOALS[row["dataset"]]]
        lines.append(
            f"| {row['dataset']} | {_bold(row['method'])} | {row['ratio']:g}× | {' | '.join(figures)} | {row['nbytes']:,} "
            f"| {row['epochs']} ({row['epoch']}) | {row['cpu_s']:.0f} | {row['train_bytes']:,} |"
        )
    return "\n".join(lines)


def missing(cells: Cells, wanted: Callable[[], Iterable[Any]]) -> str:
    """How many of the grid's cells have no row yet."""
    total: dict[str, set[Any]] = defaultdict(set)
    done: dict[str, set[Any]] = defaultdict(set)
    for cell in wanted():
        total[cell.dataset].add(cell)
        figure = cells.figure(cell.dataset, cell.method, cell.ratio, GOALS[cell.dataset][0])
        seeds = {row["seed"] for row in figure.rows} if figure is not None else set()
        if cell.seed in seeds or cells.unreachable(cell.dataset, cell.method, cell.ratio):
            done[cell.dataset].add(cell)
    lines = ["| data set | cells of the grid | there | to be run |", "|---|---|---|---|"]
    for dataset, all_cells in total.items():
        have = len(done[dataset])
        lines.append(f"| {dataset} | {len(all_cells)} | {have} | {len(all_cells) - have} |")
    return "\n".join(lines)


def _bold(method: str) -> str:
    return f"**{method}**" if method in OURS else method


def tables(cells: Cells, whole: Cells, wanted: Callable[[], Iterable[Any]]) -> dict[str, str]:
    """Each generated part of the page by its name."""
    made = {"summary": summary(cells), "missing": missing(cells, wanted), "losses": losses(cells)}
    made["whole"] = confirmed(whole)
    for dataset in DATASETS:
        made[f"comparison {dataset}"] = comparison(cells, dataset)
        made[f"ablation {dataset}"] = ablation(cells, dataset, 100)
        for ratio in (10, 32, 100, 1000):
            made[f"costs {dataset} {ratio}"] = costs(cells, dataset, ratio)
    return made


def write(
    rows: Iterable[dict[str, Any]],
    whole: Iterable[dict[str, Any]],
    page: Path,
    wanted: Callable[[], Iterable[Any]],
) -> None:
    """Make the page's tables anew, of rows on draws of the data sets and on whole ones, and its plots beside it."""
    from benchmarks.quality.plots import plot

    cells = Cells(rows)
    text = page.read_text()
    for name, table in tables(cells, Cells(whole), wanted).items():
        text = re.sub(
            rf"<!-- {name} -->.*?<!-- end -->",
            lambda _, n=name, t=table: f"<!-- {n} -->\n{t}\n<!-- end -->",
            text,
            flags=re.DOTALL,
        )
    page.write_text(text)
    for dataset in DATASETS:
        if cells.ratios(dataset):
            plot(
                cells,
                dataset,
                GOALS[dataset][0],
                TITLES[dataset, GOALS[dataset][0]],
                page.parent / f"quality_{dataset}.svg",
            )
