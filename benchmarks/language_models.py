"""Perplexity of a word-level language model whose two vocabulary matrices are one table, dense or at a fraction of the bytes.

    OMP_NUM_THREADS=1 python -m benchmarks.language_models            every run that has no row yet, one after the other
    python -m benchmarks.language_models --only hfh 32 --seeds 0 1    some of them
    python -m benchmarks.language_models --report --plot              what the rows say

Each run is a process of its own, so that its peak memory is its own; it goes on from its checkpoint when it was stopped.
Rows are written as runs end. The model, the text and the settings are those of ``examples/train_language_model.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import RESULTS, Recorder

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from language_model.report import plot, table
from language_model.tables import method_of
from language_model.text import DATA, load
from language_model.training import Run, Settings, Stopped

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "var" / "language_model"
PLOTS = ROOT / "docs" / "plots"

RUNS: Sequence[tuple[str, float, tuple[float, ...]]] = (
    ("dense", 1, (4e-3, 8e-3)),
    ("form:exact_share=0.5,exact_bits=4", 10, (4e-3,)),
    ("form:exact_share=0.35,exact_bits=4", 32, (4e-3,)),
    ("form:exact_share=0.25,exact_bits=4", 100, (4e-3,)),
    ("banded4", 10, (4e-3,)),
    ("banded4", 32, (4e-3,)),
    ("banded4", 100, (4e-3,)),
    ("narrow4", 10, (4e-3,)),
    ("narrow1", 31.99, (4e-3,)),
    ("narrow2", 32, (4e-3,)),
    ("narrow2", 100, (4e-3,)),
    ("hfh", 10, (4e-3,)),
    ("hfh", 32, (4e-3,)),
    ("hfh", 100, (4e-3,)),
    ("hash-embeddings", 32, (4e-3,)),
    ("banded", 32, (4e-3,)),
    ("narrow32", 10, (4e-3,)),
)
"""Method, ratio, learning rates of the table's values."""


def train(settings: Settings, bpe: int, data: Path) -> None:
    """One run in this process; its figures as JSON on stdout."""
    torch.set_num_threads(1)
    corpus = load(data, bpe=bpe, kept=KEPT)
    run = Run(settings, corpus, KEPT / "checkpoints" / (f"bpe{bpe}" if bpe else "words"))
    figures = run.go()
    run.checkpoint.unlink()
    print(json.dumps({"title": method_of(settings.method).title, "bpe": bpe} | figures))


def key(settings: Settings, bpe: int) -> dict[str, Any]:
    """What a run's row is found by."""
    return {
        "method": settings.method,
        "ratio": settings.ratio,
        "seed": settings.seed,
        "bpe": bpe,
        "rate": settings.table_rate,
        "std": settings.row_std,
        "tokens": settings.tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs=2, action="append", metavar=("METHOD", "RATIO"), help="instead of all runs; repeat it"
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", help="learning rates of the table's values, instead of the listed ones"
    )
    parser.add_argument("--std", type=float, default=0.0, help="of initial rows, instead of the method's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tokens", type=int, default=Settings.tokens)
    parser.add_argument("--bpe", type=int, default=0, metavar="PIECES", help="a BPE vocabulary instead of words")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of novels100 (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="print the rows as a table, train nothing")
    parser.add_argument("--plot", action="store_true", help="draw the plots of the docs from the rows, train nothing")
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.settings:
        return train(Settings(**json.loads(args.settings)), args.bpe, args.data)
    if args.report or args.plot:
        rows = [json.loads(line) for line in (RESULTS / "language_models.jsonl").read_text().splitlines()]
        if args.report:
            print(table(rows))
        if args.plot:
            plot(rows, PLOTS)
        return None
    recorder = Recorder("language_models", resume=True)
    wanted = [(method, float(ratio), ()) for method, ratio in args.only] if args.only else RUNS
    for seed in args.seeds:
        for method, ratio, rates in wanted:
            for rate in args.rates or rates or (0.0,):
                settings = Settings(method=method, ratio=ratio, seed=seed, tokens=args.tokens, rate=rate, std=args.std)
                if not recorder.find(**key(settings, args.bpe)):
                    recorder.row(**key(settings, args.bpe) | _apart(settings, args))
    return None


def _apart(settings: Settings, args: argparse.Namespace) -> dict[str, Any]:
    """A run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.language_models", "--settings", json.dumps(vars(settings))]
    command += ["--bpe", str(args.bpe), "--data", str(args.data)]
    # A gradient as large as a table is made at every step; by default each would come fresh from the system, page by page.
    memory = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | memory, stdout=subprocess.PIPE, text=True, check=False
        )
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the checkpoint")
    if done.returncode:
        sys.exit(done.returncode)
    figures: dict[str, Any] = json.loads(done.stdout)
    print(f"{figures['title']:<32} {settings.ratio:>5g}x  perplexity {figures['perplexity']:.2f}", flush=True)
    return figures


if __name__ == "__main__":
    try:
        main()
    except Stopped as stopped:
        sys.exit(f"stopped; {stopped} keeps what was done")
