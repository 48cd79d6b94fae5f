"""The laboratory: trains every method on every data set at equal bytes, and writes docs/results.md.

Each run's row is written when it ends; the same command goes on where it was stopped. One thread; run it as
OMP_NUM_THREADS=1 python -m benchmarks.quality
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.quality.data import DATA, Size
from benchmarks.quality.grid import TABLES, cells
from benchmarks.quality.methods import COMPARED, FULLS, METHODS
from benchmarks.quality.report import PAGE, write
from benchmarks.quality.runner import DATASETS, Cell, Laboratory
from benchmarks.record import RESULTS, Recorder

QUICK_RATIO = 100
REPEATED = ("CAFE of kept ids, SGD", "ROBE of kept ids, SGD", "hfh levels of all ids, SGD", "hfh after training, SGD")
"""What takes no code that another method does not take too."""
QUICK_FOLDER = RESULTS.parent.parent / "var" / "quality"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "tables", nargs="*", help=f"of {', '.join(TABLES)}, or report to make the page only; default: all"
    )
    parser.add_argument("--datasets", nargs="*", default=list(DATASETS), choices=DATASETS, help="default: all")
    parser.add_argument(
        "--methods", nargs="*", default=list(METHODS), choices=METHODS, metavar="METHOD", help="default: all"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the data sets (default: %(default)s)")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="whole data sets, not a fixed draw of households and users, at the rates found on the draw: the table confirm",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"does it work: the sample files, one epoch at {QUICK_RATIO}x, a report in var/quality",
    )
    parser.add_argument("--folder", type=Path, help="where rows and page go (default: benchmarks/results and docs)")
    args = parser.parse_args()
    unknown = [name for name in args.tables if name not in (*TABLES, "report")]
    if unknown:
        parser.error(f"no table is named {unknown[0]!r}; there are {', '.join(TABLES)} and report")
    folder = args.folder or (QUICK_FOLDER if args.quick else None)
    page = PAGE
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / PAGE.name
        shutil.copyfile(PAGE, page)
    size = Size.SAMPLE if args.quick else Size.WHOLE if args.whole else Size.PART
    lab = Laboratory(Recorder("quality", resume=True, folder=folder or RESULTS), args.data, size, args.quick)
    tables = tuple(args.tables) or (("confirm",) if args.whole else tuple(name for name in TABLES if name != "confirm"))
    chosen = _quick() if args.quick else cells(tables)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the run in progress too
    try:
        if args.tables != ["report"]:
            lab.fill(cell for cell in chosen if cell.dataset in args.datasets and cell.method in args.methods)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None
    shown, whole = (lab, []) if args.quick else (lab.of_size(Size.PART), lab.of_size(Size.WHOLE).rows())
    write([row for name in DATASETS for row in shown.rows(dataset=name)], whole, page, _grid)
    print(f"{page} is made from {len(shown.rows()) + len(whole)} rows")


def _quick() -> Iterator[Cell]:
    for dataset, method in itertools.product(DATASETS, COMPARED):
        if method.endswith(", SGD") and dataset != DATASETS[0]:  # the same tables with another optimizer, once
            continue
        if method in REPEATED:
            continue
        yield Cell(dataset, method, 1 if method in FULLS else QUICK_RATIO)


def _grid() -> Iterable[Cell]:
    """What the page's tables are complete by; the other tables are run by name."""
    return cells(("compare",))


if __name__ == "__main__":
    main()
