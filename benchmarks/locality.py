"""What the locality of addresses costs in quality and buys in time.

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.locality

The recommender of the training example learns from what 150 of its households bought, with every field's table on one 1-bit pool that
differs only in where rows fetch from, and with dense tables. Learning rates are picked on the validation weeks, one for the
dense tables and one for all pools (on eight words), with a seed that is not used afterwards. A seed draws the initial
values, the order of the rows and the hash functions. Rows that are there already are not run again.

Lookups are timed twice for each form: on the pool that was trained, which fits the processor's caches, and on one that does not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import Recorder
from hfh_embed.budget import Form, plan
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import Locality

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from completejourney import DATA, FIELDS, Split, load
from recommender import DIM, Recommender, build, train

DENSE, TUNED = "dense", "words, U = 8"
FORMS: Mapping[str, Form | None] = {
    DENSE: None,
    "words, U = 16": Form(num_hashes=16),
    TUNED: Form(num_hashes=8),
    "words, U = 4": Form(num_hashes=4),
    "line, U = 8, Z = 8": Form(locality=Locality.LINE, num_hashes=8, chunk_size=8),
    "2 lines, U = 8, Z = 8": Form(locality=Locality.LINE, num_hashes=8, chunk_size=8, lines=2),
    "free, U = 8, Z = 8": Form(locality=Locality.FREE, num_hashes=8, chunk_size=8),
    "free, U = 4, Z = 8": Form(locality=Locality.FREE, num_hashes=4, chunk_size=8),
    "free, U = 4, Z = 1": Form(locality=Locality.FREE, num_hashes=4, chunk_size=1),
}
RATES = {DENSE: (2e-3, 5e-3, 1e-2), TUNED: (2e-3, 5e-3, 1e-2)}
TUNING_SEED = 1000
HOUSEHOLDS, BATCH = 150, 1024
LARGE_IDS, LARGE_RATIO = 100_000_000, 100
ASKED, REPEATS = 65_536, 7


def sample() -> tuple[dict[str, Split], dict[str, int]]:
    """All rows of some households, the same at every run, with each field's ids renumbered to those that occur."""
    whole, sizes = load(DATA)
    chosen = np.random.default_rng(0).choice(np.arange(1, sizes["hh"]), HOUSEHOLDS, replace=False)
    splits = {name: np.isin(split.ids[:, FIELDS.index("hh")], chosen) for name, split in whole.items()}
    ids = np.concatenate([whole[name].ids[mine] for name, mine in splits.items()])
    fresh = [np.unique(column, return_inverse=True)[1] for column in ids.T]
    ends = np.cumsum([mine.sum() for mine in splits.values()])[:-1]
    parts = np.split(np.stack(fresh, axis=1), ends)
    out = {
        name: Split(part, whole[name].labels[mine]) for (name, mine), part in zip(splits.items(), parts, strict=True)
    }
    return out, {field: int(column.max()) + 1 for field, column in zip(FIELDS, fresh, strict=True)}


def default_of(dim: int) -> str:
    """The form that a ratio picks."""
    shared = Form().table("table", 1000, dim, 0, "pool").shared
    assert shared is not None
    return f"words, U = {shared.num_hashes}"


def kind_of(dim: int) -> str:
    return "quality" if dim == DIM else f"quality, D = {dim}"


def learn(
    splits: dict[str, Split],
    sizes: dict[str, int],
    name: str,
    ratio: int,
    rate: float,
    seed: int,
    epochs: int,
    dim: int = DIM,
) -> dict[str, Any]:
    """Train one model; what its row says."""
    torch.manual_seed(seed)
    form = FORMS[name]
    model = Recommender(build(sizes, None if form is None else ratio, form, seed, dim), dim)
    dense = 4 * dim * sum(sizes.values())
    nbytes = dense if form is None else model.tables["prod"].pool.nbytes
    outcome = train(model, splits, epochs, rate, name, BATCH)
    return {
        "nbytes": nbytes,
        "valid_auc": round(outcome.valid, 5),
        "test_auc": round(outcome.test, 5),
        "epoch": outcome.epoch,
        "seconds": round(outcome.seconds, 1),
        "lookup_ns": round(fastest(lambda ids: model.tables["prod"](torch.from_numpy(ids)), sizes["prod"]), 1),
    }


@torch.no_grad()
def fastest(lookup: Any, n: int) -> float:
    """Nanoseconds a row of a lookup of many random ids, the fastest of several calls."""
    generator, times = np.random.default_rng(1), []
    for _ in range(REPEATS):
        ids = generator.integers(n, size=ASKED)
        began = time.perf_counter_ns()
        lookup(ids)
        times.append(time.perf_counter_ns() - began)
    return min(times) / ASKED


def large_lookup(form: Form) -> dict[str, Any]:
    """Lookups in a pool of random values that no cache holds, as a snapshot serves them."""
    spec = plan({"table": (LARGE_IDS, DIM)}, LARGE_RATIO, form=form)
    generator = np.random.default_rng(2)
    arrays = {}
    for key, array in spec.arrays().items():
        drawn = generator.integers(256, size=array.nbytes, dtype=np.uint8)
        arrays[key] = drawn if array.dtype == np.uint8 else np.ones(array.shape, array.dtype)
    table = Snapshot(spec, arrays)["table"]
    return {"nbytes": spec.nbytes, "lookup_ns": round(fastest(table.lookup, LARGE_IDS), 1)}


def tuned(recorder: Recorder, splits: dict[str, Split], sizes: dict[str, int], name: str, epochs: int) -> float:
    """The learning rate that is best on the validation weeks, at the first ratio."""
    for rate in RATES[name]:
        key = {"kind": "rate", "form": name, "ratio": 100, "rate": rate, "seed": TUNING_SEED}
        if not recorder.find(**key):
            row = recorder.row(**key, **learn(splits, sizes, name, 100, rate, TUNING_SEED, epochs))
            print(
                f"{name:<24} rate {rate:<7g} validation AUC {row['valid_auc']:.4f}  {row['seconds']:.0f} s", flush=True
            )
    best = max(recorder.find(kind="rate", form=name), key=lambda row: row["valid_auc"])
    return float(best["rate"])


def report(recorder: Recorder, ratios: list[int], dim: int) -> None:
    """Mean and standard deviation over the seeds, with the difference to the default form."""
    print(
        f"{'ratio':>5}  {'form':<24}{'test AUC':>9}{'sd':>8}{'- default':>11}{'ns':>7}{'ns, large pool':>16}{'seeds':>7}"
    )
    for ratio in ratios:
        found = recorder.find(kind=kind_of(dim), form=default_of(dim), ratio=ratio)
        default = np.array([row["test_auc"] for row in found])
        for name in FORMS:
            rows = recorder.find(kind=kind_of(dim), form=name, ratio=1 if name == DENSE else ratio)
            if not rows or not len(default):
                continue
            scores = np.array([row["test_auc"] for row in rows])
            large = recorder.find(kind="large lookup", form=name) if dim == DIM else []
            print(
                f"{ratio if name != DENSE else 1:>5}  {name:<24}{scores.mean():>9.4f}{scores.std(ddof=1) if len(scores) > 1 else 0:>8.4f}"
                f"{scores.mean() - default.mean():>+11.4f}{min(row['lookup_ns'] for row in rows):>7.0f}"
                f"{large[0]['lookup_ns'] if large else float('nan'):>16.0f}{len(rows):>7}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--ratios", type=int, nargs="*", default=[100])
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=FORMS, help="default: all")
    parser.add_argument("--dim", type=int, default=DIM, help="entries of a row (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6, help="at most; stops early (default: %(default)s)")
    args = parser.parse_args()
    splits, sizes = sample()
    print(
        f"{', '.join(f'{len(split.ids):,} {name}' for name, split in splits.items())} rows, {sum(sizes.values()):,} ids"
    )
    recorder = Recorder("locality", resume=True)
    rates = {name: tuned(recorder, splits, sizes, name, args.epochs) for name in RATES}
    print(f"learning rates: dense {rates[DENSE]:g}, every pool {rates[TUNED]:g}", flush=True)
    for name, form in FORMS.items():
        if form is not None and args.dim == DIM and not recorder.find(kind="large lookup", form=name):
            recorder.row(kind="large lookup", form=name, ratio=LARGE_RATIO, ids=LARGE_IDS, **large_lookup(form))
    for ratio in args.ratios:
        for seed in range(args.seeds):
            for name in args.forms:
                form = FORMS[name]
                key = {"kind": kind_of(args.dim), "form": name, "ratio": 1 if form is None else ratio, "seed": seed}
                if recorder.find(**key):
                    continue
                rate = rates[DENSE if form is None else TUNED]
                row = recorder.row(
                    **key, rate=rate, **learn(splits, sizes, name, ratio, rate, seed, args.epochs, args.dim)
                )
                print(
                    f"{name:<24} ratio {key['ratio']:<4} seed {seed}  test AUC {row['test_auc']:.4f}"
                    f"  epoch {row['epoch']}  {row['seconds']:.0f} s",
                    flush=True,
                )
    report(recorder, args.ratios, args.dim)


if __name__ == "__main__":
    main()
