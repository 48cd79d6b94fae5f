"""Which cells each table has, in the order of what they are worth knowing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from benchmarks.quality.methods import ABLATION, BY_FREQUENCY, BY_RATIO, COMPARED, FULL, FULL_SGD, FULLS, PEERS, TAUGHT
from benchmarks.quality.runner import DATASETS, Cell

__all__ = ["ABLATION_RATIO", "TABLES", "cells"]

STRONG = (
    "hfh line",
    "hfh line, SGD",
    "few-bit rows",
    "hfh line, 16 words",
    "hfh line, 16 words, SGD",
    "low dimension, 1 bit",
    f"{BY_RATIO}, SGD",
)
KEPT = (
    BY_FREQUENCY,
    f"{BY_FREQUENCY}, SGD",
    "hfh after training, kept ids, SGD",
    "few-bit rows of kept ids, SGD",
    *TAUGHT,
)
"""What keeps the ids that training uses often enough."""
RIVALS = {
    10: ("CAFE", "few-bit rows, SGD", "hfh after training", *KEPT),
    32: ("CAFE", "CAFE, SGD", "hfh after training", *KEPT),
    100: KEPT,
}
"""What is close to the best at a ratio and none of STRONG, so that it has as many seeds."""
CLOSE = (
    "hfh line",
    "hfh line, SGD",
    "hfh line, 16 words",
    "hfh line, 16 words, SGD",
    "few-bit rows",
    f"{BY_RATIO}, SGD",
    *RIVALS[32],
)
"""What runs with a third seed at CLOSE_RATIOS."""
CLOSE_RATIOS = (10, 32, 100)
PUBLISHED = tuple(name for name in PEERS if not name.endswith("SGD"))
OTHERS = ("hfh line", "hfh line, 16 words", "hfh mix", BY_RATIO, BY_FREQUENCY, "hfh after training", *PUBLISHED)
"""What runs on the second and the third data set, where Adam is the better optimizer."""
DESCENDED = ("hfh line, SGD", f"{BY_FREQUENCY}, SGD", "few-bit rows, SGD")
"""What shows that, on the second at 32x."""
RIVALS_ELSEWHERE = {
    32: (BY_RATIO, BY_FREQUENCY, "hfh after training", "few-bit rows", "low dimension, 2 bits"),
    10: (BY_RATIO, BY_FREQUENCY, "hfh after training", "few-bit rows"),
    100: (BY_RATIO, BY_FREQUENCY, "hfh after training", "low dimension, 2 bits"),
}
"""What is close to the best on the second, and has as many seeds there as on the first."""
CONFIRMED = (
    (f"{BY_FREQUENCY}, SGD", 32),
    (f"{BY_FREQUENCY}, SGD", 100),
    (f"{BY_RATIO}, SGD", 32),
    (f"{BY_RATIO}, SGD", 100),
    ("CAFE, SGD", 32),
    ("few-bit rows, SGD", 32),
    ("ROBE, SGD", 100),
)
"""What runs on a whole data set."""
RATIOS = (32, 100, 10, 1000)
BETWEEN = (300, 16, 64, 8)
SEEDS = 2
ABLATION_RATIO = 100


def compare() -> Iterator[Cell]:
    """Every method on every data set at four ratios, the strongest with more seeds."""
    journey, book, beauty = DATASETS
    for seed in range(SEEDS):
        for ratio in RATIOS:
            methods = COMPARED if seed == 0 else (*FULLS, *STRONG, *RIVALS.get(ratio, ()))
            yield from (Cell(journey, method, 1 if method in FULLS else ratio, seed) for method in methods)
    for dataset in (book, beauty):
        yield from (Cell(dataset, method, 1) for method in (FULL, FULL_SGD))
        for ratio in RATIOS:
            yield from (Cell(dataset, method, ratio) for method in OTHERS)
    yield from (Cell(book, method, 32) for method in DESCENDED)
    for seed in range(1, SEEDS):
        yield Cell(book, FULL, 1, seed)
        for ratio, methods in RIVALS_ELSEWHERE.items():
            yield from (Cell(book, method, ratio, seed) for method in methods)
    yield from (Cell(journey, method, 1, SEEDS) for method in FULLS)
    for ratio in CLOSE_RATIOS:
        yield from (Cell(journey, method, ratio, SEEDS) for method in CLOSE)


def between() -> Iterator[Cell]:
    """The strongest, and one peer that every ratio can have, at the ratios between, on the first data set."""
    for ratio in BETWEEN:
        yield from (Cell(DATASETS[0], method, ratio) for method in (*STRONG, *KEPT[:2], "ROBE"))
    for seed in range(SEEDS + 1):
        yield from (Cell(DATASETS[0], method, BETWEEN[0], seed) for method in (f"{BY_FREQUENCY}, SGD", *TAUGHT))


def confirm() -> Iterator[Cell]:
    """What wins on the draw, and what it wins against, for the whole of the first data set."""
    yield Cell(DATASETS[0], FULL_SGD, 1)
    yield from (Cell(DATASETS[0], method, ratio) for method, ratio in CONFIRMED)


def ablation() -> Iterator[Cell]:
    """One thing changed at a time, at 100x, on the first data set."""
    yield Cell(DATASETS[0], "hfh line", ABLATION_RATIO)
    for group in ABLATION.values():
        yield from (Cell(DATASETS[0], method, ABLATION_RATIO) for method in group)


TABLES: Mapping[str, Callable[[], Iterator[Cell]]] = {
    "compare": compare,
    "between": between,
    "ablation": ablation,
    "confirm": confirm,
}


def cells(tables: tuple[str, ...]) -> Iterator[Cell]:
    """The cells of some tables."""
    for name in tables:
        yield from TABLES[name]()
