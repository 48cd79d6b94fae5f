"""Runs cells one after another, each in a process of its own, and writes each one's row when it ends.

A cell is a method at a ratio on a data set with a seed. Its learning rate is chosen once for (data set, method) with seed 0 at the
first ratio that is asked for: from RATES the middle one, then its neighbours uphill by the validation figure. Tables that are
compressed after training take the full table's rate, what the ablation changes the plain line's. Runs whose rows are there
are not repeated, so the same command goes on where it was stopped, and a stopped run is all that is lost.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.clicks import ClickTask
from benchmarks.quality.data import Size, load_clicks, load_pairs, load_sequences
from benchmarks.quality.methods import (
    AFTER_SGD,
    AFTERWARDS,
    BY_FREQUENCY,
    BY_RATIO,
    COMPARED,
    FULL,
    FULL_SGD,
    FULLS,
    TAUGHT,
    TooSmallError,
)
from benchmarks.quality.pairs import PairTask
from benchmarks.quality.sequences import SequenceTask
from benchmarks.quality.training import Task, learn
from benchmarks.record import Recorder
from hfh_embed.budget import choose

__all__ = ["DATASETS", "PROTOCOL", "RATES", "Cell", "Laboratory"]

PROTOCOL: Mapping[str, int] = {"completejourney": 1, "amazon_book": 2, "beauty": 2}
"""Raised when a data set's model or training changes, so that figures of different ones are never compared."""
DATASETS = tuple(PROTOCOL)
RATES = (5e-4, 1.5e-3, 4e-3, 1.2e-2, 3.6e-2, 0.1)
"""Adam's rates for the embedding."""
START: Mapping[str, float] = {"completejourney": 4e-3, "amazon_book": 1.2e-2, "beauty": 1.2e-2}
"""Where the search for the best rate begins."""
CHOSEN = (BY_RATIO, f"{BY_RATIO}, SGD", BY_FREQUENCY, f"{BY_FREQUENCY}, SGD")
"""Methods that are another form at some ratios, which wants another rate."""
BORROWS: Mapping[str, str] = {"beauty": "amazon_book"}
"""Whose rates a data set's methods take that were not searched for there, for want of time."""
PART_RATIOS = (32, 100)
"""Where forms are searched for that are like those of a whole data set."""


@dataclass(frozen=True)
class Cell:
    """One figure of a table."""

    dataset: str
    method: str
    ratio: float
    seed: int = 0


class Laboratory:
    """The data that is loaded, the rows that are known, and what is run to know more."""

    """With ``quick`` runs take one epoch at the first learning rate: to see that everything works."""

    def __init__(self, recorder: Recorder, folder: Path, size: Size, quick: bool = False) -> None:
        self.recorder, self.folder, self.size, self.quick = recorder, folder, size, quick
        self._tasks: dict[str, Task] = {}
        torch.set_num_threads(1)  # the runs are forks of this process, which threads would not survive

    def task(self, dataset: str) -> Task:
        """The data set with its model, loaded at first use."""
        if dataset not in self._tasks:
            makers = {
                "completejourney": lambda: ClickTask(load_clicks(self.size, self.folder)),
                "amazon_book": lambda: PairTask(load_pairs(self.size, self.folder)),
                "beauty": lambda: SequenceTask(load_sequences(self.size, self.folder)),
            }
            self._tasks[dataset] = makers[dataset]()
        return self._tasks[dataset]

    def rows(self, **values: Any) -> list[dict[str, Any]]:
        """Rows of this size and protocol with these values."""
        found = self.recorder.find(size=str(self.size), **values)
        return [row for row in found if row["protocol"] == PROTOCOL[row["dataset"]]]

    def of_size(self, size: Size) -> Laboratory:
        """The same on more or less of the data."""
        return Laboratory(self.recorder, self.folder, size, self.quick)

    def fill(self, cells: Iterable[Cell]) -> None:
        """Run what has no row yet."""
        for cell in cells:
            rate = self.rate(cell)
            if rate is not None:
                self.run(cell, rate)

    def rate(self, cell: Cell) -> float | None:
        """The method's learning rate on this data set, searched where it is not known; None where the cell cannot be had."""
        if self.quick:
            return START[cell.dataset]
        if self.size is Size.WHOLE:
            part, ratio = self.of_size(Size.PART), cell.ratio
            if cell.method in CHOSEN:
                alike = [r for r in PART_RATIOS if part.form(dataclasses.replace(cell, ratio=r)) == self.form(cell)]
                ratio = next(iter(alike), ratio)
            return part.rate(dataclasses.replace(cell, ratio=ratio))
        if cell.method in AFTERWARDS:
            return self.rate(Cell(cell.dataset, FULL, 1))
        if cell.method in AFTER_SGD:
            return self.rate(Cell(cell.dataset, FULL_SGD, 1))
        if cell.method in TAUGHT:
            return self.rate(Cell(cell.dataset, TAUGHT[cell.method], cell.ratio))
        if cell.method not in COMPARED:
            return self.rate(Cell(cell.dataset, "hfh line", cell.ratio))
        tuned = self.rows(dataset=cell.dataset, method=cell.method, seed=0, tuning=True)
        tuned = [row for row in tuned if "valid" in row]
        if cell.method in CHOSEN:
            tuned = [
                row for row in tuned if self.form(dataclasses.replace(cell, ratio=row["ratio"])) == self.form(cell)
            ]
        if not tuned and cell.dataset in BORROWS:
            return self.rate(dataclasses.replace(cell, dataset=BORROWS[cell.dataset]))
        ratio = tuned[0]["ratio"] if tuned else cell.ratio
        valid: dict[int, float] = {}

        def climb(at: int) -> bool:
            if at not in valid:
                row = self.run(Cell(cell.dataset, cell.method, ratio), RATES[at], tuning=True)
                if row is None or "valid" not in row:
                    return False
                valid[at] = row["valid"]
            return True

        at = RATES.index(START[cell.dataset])
        if not climb(at):
            return None
        for step in (1, -1):
            moved = False
            while 0 <= at + step < len(RATES) and climb(at + step) and valid[at + step] > valid[at]:
                at, moved = at + step, True
            if moved:
                break
        known = self.rows(dataset=cell.dataset, method=cell.method, ratio=1 if cell.method in FULLS else ratio, seed=0)
        best: float = max(known, key=lambda row: row["valid"])["rate"]
        return best

    def form(self, cell: Cell) -> tuple[bool, bool]:
        """The kind of form that the library picks for a cell: whether rows read a pool, and have bits of their own beside it."""
        shapes = self.task(cell.dataset).shapes
        if cell.method.startswith(BY_RATIO):
            picked = choose(cell.ratio, {field: (n, shapes.dim) for field, n in shapes.sizes.items()})
        else:
            picked = choose(cell.ratio, {"ids": (shapes.total, shapes.dim)}, {"ids": shapes.joined_counts})
        return picked.shared, bool(picked.private_bits)

    def run(self, cell: Cell, rate: float, tuning: bool = False) -> dict[str, Any] | None:
        """The row of a run, made now where there is none; None where the run failed."""
        key = {
            "dataset": cell.dataset,
            "method": cell.method,
            "ratio": 1 if cell.method in FULLS else cell.ratio,
            "seed": cell.seed,
        }
        unreachable = [
            row
            for row in self.rows(dataset=cell.dataset, method=cell.method, ratio=key["ratio"])
            if "unreachable" in row
        ]
        known = unreachable or self.rows(**key, rate=rate)
        if known:
            return known[0]
        about = {"size": str(self.size), "protocol": PROTOCOL[cell.dataset]} | key | {"rate": rate, "tuning": tuning}
        outcome = self._apart(cell, rate)
        if "failed" in outcome:
            print(f"{cell} failed:\n{outcome['failed']}", file=sys.stderr, flush=True)
            return None
        row = self.recorder.row(**about, **outcome)
        print(_line(row), flush=True)
        return row

    def _apart(self, cell: Cell, rate: float) -> dict[str, Any]:
        """A run in a process of its own, so that memory is its own and a crash ends one run."""
        task = self.task(cell.dataset)
        context = multiprocessing.get_context("fork")
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(send, task, cell, rate, 1 if self.quick else None))
        process.start()
        send.close()
        try:
            outcome: dict[str, Any] = receive.recv()
        except EOFError:
            outcome = {"failed": "the process ended without an answer"}
        except KeyboardInterrupt:
            process.kill()
            raise
        finally:
            process.join()
        return outcome


def _work(send: Connection, task: Task, cell: Cell, rate: float, max_epochs: int | None) -> None:
    try:
        send.send(learn(task, cell.method, cell.ratio, rate, cell.seed, max_epochs))
    except TooSmallError as error:
        send.send({"unreachable": str(error)})
    except KeyboardInterrupt:
        pass
    except Exception:
        send.send({"failed": traceback.format_exc()})


def _line(row: dict[str, Any]) -> str:
    name = f"{row['dataset']:<16}{row['method']:<24}{row['ratio']:>6g}x seed {row['seed']} rate {row['rate']:<7g}"
    if "unreachable" in row:
        return f"{name} cannot be had: {row['unreachable']}"
    test = "  ".join(f"{metric} {value:.4f}" for metric, value in row["test"].items())
    return f"{name} {test}  {row['nbytes']:,} bytes  epoch {row['epoch']} of {row['epochs']}  {row['seconds']:.0f} s"
