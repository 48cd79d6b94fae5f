"""Lookups of compressed tables against uncompressed ones, all in one run: targets with pass or fail.

    python -m benchmarks.lookup [--quick]

Contenders take turns; figures are medians of the turns, in nanoseconds a row, one thread unless said. Dense tables have every
page touched. ``F.embedding`` reads a tensor that torch made, as a layer's weight is; ``f_embedding_huge`` and the C++ gather (prefetched
16 rows ahead) read the same rows in huge pages. The gather writes into an array that exists already, all others return new ones. Every call takes the next of prepared batches, two million ids in all, uniform or Zipf with exponent 1.05: fewer would stay in the caches.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from benchmarks.record import Recorder
from hfh_embed.budget import LEAST_USES, PRESETS, Form, plan
from hfh_embed.kernels._native import SIMD, gather
from hfh_embed.layout import SnapshotSpec
from hfh_embed.lookup import Table
from hfh_embed.snapshot import Snapshot
from hfh_embed.verbs.bench import dense_table, interleaved
from tests.builders import random_arrays

N, D = 10_000_000, 64
BATCHES = (64, 1_024, 16_384)
Ids = npt.NDArray[np.int64]
generator = np.random.default_rng(0)


def filled(spec: SnapshotSpec) -> Snapshot:
    """A snapshot with random values: what a row costs does not depend on them."""
    return Snapshot(spec, random_arrays(spec))


def one_table(n: int, dim: int, ratio: float, form: Form | None = None) -> Table:
    frequencies = {"table": 1.0 / (1.0 + np.arange(n))} if form is not None and form.exact_share else None
    return filled(plan({"table": (n, dim)}, ratio, form=form, frequencies=frequencies))["table"]


def uses_of(n: int) -> Ids:
    """Counts that fall with the rank, of which a fifth are ten or more; ranks are spread over the table."""
    uses = 2 * n // (1 + np.arange(n))
    return uses[np.arange(n) * 2_654_435_761 % n]


def batches(kind: str, batch: int, n: int) -> list[Ids]:
    """Prepared ids. Zipf ranks are spread over the table by a permutation, as ids are in practice."""
    count = max(8, 2**21 // batch)  # so many ids that no cache holds the dense rows of a round
    if kind == "uniform":
        return list(generator.integers(0, n, (count, batch)))
    share = np.cumsum(1.0 / np.arange(1, n + 1) ** 1.05)
    ranks = np.searchsorted(share, generator.random((count, batch)) * share[-1])
    return list((ranks.astype(np.int64) * 2_654_435_761) % n)


class Dense(NamedTuple):
    """An uncompressed table twice: in huge pages where the system has them, and where torch puts its tensors."""

    rows: npt.NDArray[np.float32]
    weight: torch.Tensor

    @classmethod
    def of(cls, n: int, dim: int) -> Dense:
        return cls(dense_table(n, dim), torch.empty(n, dim).fill_(0.5))


class Bench:
    """Rows of one run, and the targets among them."""

    def __init__(self, repeats: int) -> None:
        self.record, self.repeats = Recorder("lookup"), repeats
        self.verdicts: list[tuple[str, float, float]] = []

    def compare(
        self, case: str, rows: int, contenders: dict[str, Callable[[], object]], **facts: Any
    ) -> dict[str, float]:
        """Time contenders; the first is ours. Returns how many times slower each other one is (median over the turns)."""
        seconds = interleaved(contenders, self.repeats)
        ours, *others = seconds
        ratios = {
            name: statistics.median(theirs / mine for mine, theirs in zip(seconds[ours], seconds[name], strict=True))
            for name in others
        }
        figures = {f"{name}_ns": round(statistics.median(times) / rows * 1e9, 2) for name, times in seconds.items()}
        spread = {f"{name}_worst_ns": round(max(times) / rows * 1e9, 2) for name, times in seconds.items()}
        times = {f"{name}_over_{ours}": round(value, 3) for name, value in ratios.items()}
        self.record.row(case=case, simd=SIMD, repeats=self.repeats, **facts, **figures, **spread, **times)
        print(f"{case:<46}", *(f"{k} {v:g}" for k, v in (figures | times).items()), flush=True)
        return ratios

    def target(self, name: str, reached: float, wanted: float) -> None:
        self.verdicts.append((name, reached, wanted))

    def close(self) -> bool:
        print("\ntarget                                                       reached  wanted")
        for name, reached, wanted in self.verdicts:
            print(f"{name:<60} {reached:7.2f} {wanted:7.2f}  {'pass' if reached >= wanted else 'FAIL'}")
            self.record.row(
                case="target", target=name, reached=round(reached, 3), wanted=wanted, passed=reached >= wanted
            )
        return all(reached >= wanted for _, reached, wanted in self.verdicts)


def lookups(
    bench: Bench,
    case: str,
    table: Table,
    dense: Dense,
    kind: str,
    batch: int,
    dtype: Any = np.float32,
) -> dict[str, float]:
    rows = dense.rows
    prepared = batches(kind, batch, len(rows))
    tensors = [torch.from_numpy(ids) for ids in prepared]
    huge = torch.from_numpy(rows)
    out = np.empty((batch, rows.shape[1]), dtype=np.float32)
    turn = iter(range(10**12))
    contenders: dict[str, Callable[[], object]] = {
        "hfh": lambda: table.lookup(prepared[next(turn) % len(prepared)], dtype=dtype),
        "f_embedding": lambda: F.embedding(tensors[next(turn) % len(prepared)], dense.weight),
        "f_embedding_huge": lambda: F.embedding(tensors[next(turn) % len(prepared)], huge),
        "gather": lambda: gather(rows, prepared[next(turn) % len(prepared)], out),
    }
    facts = {
        "dense_rows": len(rows),
        "dim": rows.shape[1],
        "ids": kind,
        "batch": batch,
        "dtype": np.dtype(dtype).name,
    }
    return bench.compare(case, batch, contenders, **facts)


def main_form(bench: Bench, dense: Dense) -> None:
    line = one_table(N, D, 100)
    for kind, torch_times, gather_times in (("uniform", 5.0, 2.0), ("zipf", 3.0, 1.5)):
        for batch in BATCHES:
            ratios = lookups(bench, f"line 100x {kind} {batch}", line, dense, kind, batch)
            bench.target(f"line form, {kind} ids, batch {batch}: times F.embedding", ratios["f_embedding"], torch_times)
            bench.target(f"line form, {kind} ids, batch {batch}: times C++ gather", ratios["gather"], gather_times)
    for batch in BATCHES:
        prepared, turn = batches("uniform", batch, N), iter(range(10**12))
        ratios = bench.compare(
            f"line 100x float16 {batch}",
            batch,
            {
                "float16": lambda: line.lookup(prepared[next(turn) % len(prepared)], dtype=np.float16),  # noqa: B023
                "float32": lambda: line.lookup(prepared[next(turn) % len(prepared)]),  # noqa: B023
            },
            batch=batch,
        )
        bench.target(f"float16 no slower than float32, batch {batch}", ratios["float32"], 0.97)
    for batch in (16_384, 65_536):
        prepared, turn = batches("uniform", batch, N), iter(range(10**12))
        ratios = bench.compare(
            f"line 100x two threads {batch}",
            batch,
            {
                "two": lambda: line.lookup(prepared[next(turn) % len(prepared)], num_threads=2),  # noqa: B023
                "one": lambda: line.lookup(prepared[next(turn) % len(prepared)]),  # noqa: B023
            },
            batch=batch,
        )
        bench.target(f"two threads, batch {batch}: times one", ratios["one"], 1.7)


def other_forms(bench: Bench, dense: Dense) -> None:
    private = Form(latent_dim=16, private_dim=8, private_bits=1)
    for batch in BATCHES:
        ratios = lookups(
            bench, f"8 private bits, map 16 -> 64, {batch}", one_table(N, D, 100, private), dense, "uniform", batch
        )
        bench.target(f"8 private bits and a map, batch {batch}: times F.embedding", ratios["f_embedding"], 2.5)
    for ratio in (10, 32, 1000):
        lookups(bench, f"default form {ratio}x", one_table(N, D, ratio), dense, "uniform", 1_024)
    lookups(bench, "map 32 -> 64, 100x", one_table(N, D, 100, Form(latent_dim=32)), dense, "uniform", 1_024)
    exact = Form(exact_share=0.56, exact_bits=1)
    table = one_table(N, D, 100, exact)
    assert table.spec.exact is not None
    lookups(bench, f"exact rows for {table.spec.exact.count / N:.0%} of the ids, 100x", table, dense, "uniform", 1_024)
    for ratio, form in ((100, Form(least_uses=LEAST_USES)), (100, None), (32, None)):
        table = filled(plan({"table": (N, D)}, ratio, form=form, frequencies={"table": uses_of(N)}))["table"]
        assert table.spec.kept is not None
        what = "levels" if table.spec.levels is not None else "line"
        lookups(bench, f"{what} of a fifth of the ids, {ratio}x", table, dense, "uniform", 1_024)
    lookups(
        bench, "residual network of 64, 100x", one_table(N, D, 100, Form(residual_hidden=64)), dense, "uniform", 1_024
    )
    for name in sorted(set(PRESETS) - {"line"}):
        lookups(
            bench,
            f"preset {name}, 32x",
            one_table(N, D, 32, PRESETS[name]) if name != "hash_embeddings" else one_table(N, D, 20, PRESETS[name]),
            dense,
            "uniform",
            1_024,
        )


def other_dims(bench: Bench) -> None:
    for dim, n in ((16, N), (32, N), (128, 5_000_000), (384, 1_600_000)):
        lookups(
            bench, f"line 100x D = {dim}", one_table(n, dim, 100, PRESETS["line"]), Dense.of(n, dim), "uniform", 1_024
        )


def single(bench: Bench, dense: Dense) -> None:
    table, one = one_table(N, D, 100), np.array([12_345])
    small = dense.rows[:100_000].copy()
    ratios = bench.compare(
        "batch 1",
        1,
        {
            "hfh": lambda: table.lookup(one),
            "np_take": lambda: np.take(small, one, axis=0),
            "take_method": lambda: small.take(one, axis=0),
        },
    )
    bench.target("batch 1: np.take(cached, ids, axis=0) / ours", ratios["np_take"], 1 / 1.5)
    bench.target("batch 1: cached.take(ids, axis=0) / ours", ratios["take_method"], 1 / 1.5)


def bags(bench: Bench) -> None:
    """26 features whose tables have 10 M rows in all, the largest a third of them, as in Criteo."""
    sizes = np.maximum(3, (3_400_000 * 0.66 ** np.arange(26)).astype(np.int64))
    tables = filled(plan({f"feature{k}": (int(n), D) for k, n in enumerate(sizes)}, 100))
    dense = [torch.empty(int(n), D).fill_(0.5) for n in sizes]
    for ids_a_bag in (1, 5):
        count = 2_048 * ids_a_bag
        offsets = np.arange(2_048, dtype=np.int64) * ids_a_bag
        rounds = 128 // ids_a_bag
        prepared = [[generator.integers(0, n, count) for n in sizes] for _ in range(rounds)]
        weights = generator.normal(size=count).astype(np.float32)
        torch_ids = [[torch.from_numpy(ids) for ids in one] for one in prepared]
        torch_offsets, torch_weights = torch.from_numpy(offsets), torch.from_numpy(weights)
        for mode in ("sum", "mean", "weighted"):
            turn = iter(range(10**12))
            kind = "sum" if mode == "weighted" else mode
            own = weights if mode == "weighted" else None
            theirs = torch_weights if mode == "weighted" else None

            def ours(
                kind: str = kind, own: Any = own, turn: Any = turn, offsets: Ids = offsets, prepared: Any = prepared
            ) -> None:
                ids = prepared[next(turn) % len(prepared)]
                for k in range(26):
                    tables[f"feature{k}"].bag(ids[k], offsets, mode=kind, per_sample_weights=own)  # type: ignore[arg-type]

            def peer(
                kind: str = kind,
                theirs: Any = theirs,
                turn: Any = turn,
                ids_of: Any = torch_ids,
                o: Any = torch_offsets,
            ) -> None:
                ids = ids_of[next(turn) % len(ids_of)]
                for k in range(26):
                    F.embedding_bag(ids[k], dense[k], o, mode=kind, per_sample_weights=theirs)

            ratios = bench.compare(
                f"bag {mode}, {ids_a_bag} ids a bag", 26 * count, {"hfh": ours, "f_embedding_bag": peer}
            )
            bench.target(f"bag {mode}, {ids_a_bag} ids a bag: times F.embedding_bag", ratios["f_embedding_bag"], 3.0)


def start(bench: Bench) -> None:
    """Import, open and first lookup, each in new processes; the file is 1 GB and in the page cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.hfh"
        filled(plan({"table": (100_000_000, D)}, 25.6, form=PRESETS["line"])).save(path)
        code = (
            "import time, numpy as np; a = time.perf_counter(); import hfh_embed; b = time.perf_counter();"
            f"t = hfh_embed.open({str(path)!r})['table']; c = time.perf_counter(); t.lookup(np.arange(64));"
            "d = time.perf_counter(); print(b - a, c - b, d - c)"
        )
        runs = []
        for _ in range(7):
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            runs.append([float(part) for part in done.stdout.split()])
        size = path.stat().st_size
    for what, column, most in (("import", 0, 0.15), ("open", 1, 0.01), ("first lookup", 2, 0.05)):
        seconds = statistics.median(run[column] for run in runs)
        bench.record.row(case=f"start: {what}", seconds=round(seconds, 5), file_bytes=size)
        bench.target(f"start, {what}: allowed seconds / seconds", most / seconds, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three turns instead of seven")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    bench = Bench(3 if args.quick else 7)
    dense = Dense.of(N, D)
    main_form(bench, dense)
    single(bench, dense)
    other_forms(bench, dense)
    del dense
    other_dims(bench)
    bags(bench)
    start(bench)
    sys.exit(0 if bench.close() else 1)


if __name__ == "__main__":
    main()
