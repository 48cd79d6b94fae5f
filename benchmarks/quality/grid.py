"""Which cells each table has, in the order of what they are worth knowing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from benchmarks.quality.methods import ABLATION, COMPARED, FULL
from benchmarks.quality.runner import DATASETS, Cell

__all__ = ["ABLATION_RATIO", "TABLES", "cells"]

STRONG = ("hfh line", "few-bit rows", "hfh line, 16 words", "hfh mix", "low dimension, 1 bit")
RATIOS = (32, 100, 10, 1000)
BETWEEN = (300, 16, 64, 8)
SEEDS = 3
ABLATION_RATIO = 100
PROBED = ("hfh line", "few-bit rows", "hfh mix")
"""What runs on the sets other than the first, at the first ratio."""


def first() -> Iterator[Cell]:
    """What decides most, so that a stopped grid has it: the strongest on each data set, then every peer on one."""
    journey, *others = DATASETS
    for dataset in (journey, *others):
        yield Cell(dataset, FULL, 1)
        yield from (Cell(dataset, method, ratio) for method in STRONG for ratio in (100, 32))
    yield from (Cell(journey, method, ratio) for method in COMPARED for ratio in (100, 32))


def compare() -> Iterator[Cell]:
    """Every method on every data set at four ratios, then the strongest with more seeds."""
    for seed in range(SEEDS):
        methods = COMPARED if seed == 0 else (FULL, *STRONG)
        for ratio in RATIOS:
            for dataset in DATASETS:
                yield from (Cell(dataset, method, 1 if method == FULL else ratio, seed) for method in methods)


def between() -> Iterator[Cell]:
    """The strongest at the ratios between."""
    for ratio in BETWEEN:
        for dataset in DATASETS:
            yield from (Cell(dataset, method, ratio) for method in STRONG)


def ablation() -> Iterator[Cell]:
    """One thing changed at a time, at 100x."""
    for dataset in DATASETS[:2]:
        yield Cell(dataset, "hfh line", ABLATION_RATIO)
        for group in ABLATION.values():
            yield from (Cell(dataset, method, ABLATION_RATIO) for method in group)


TABLES: Mapping[str, Callable[[], Iterator[Cell]]] = {
    "first": first,
    "compare": compare,
    "between": between,
    "ablation": ablation,
}


def cells(tables: tuple[str, ...]) -> Iterator[Cell]:
    """The cells of some tables."""
    for name in tables:
        yield from TABLES[name]()
