"""`hfh bench`: lookups of a snapshot against gathers from an uncompressed table of the same shape, in the same run."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import InputError
from hfh_embed.kernels import native_chosen
from hfh_embed.verbs.base import Progress, Verb, bytes_text, print_json, print_table

__all__ = ["BENCH", "dense_table", "interleaved"]

LEAST_S = 0.05
"""A timing lasts at least this long, over as many batches as it takes."""


def interleaved(contenders: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, list[float]]:
    """Seconds a call of each contender, ``repeats`` times; the contenders take turns, so that all see the same machine."""
    calls: dict[str, int] = {}
    for name, call in contenders.items():
        call()
        began = time.perf_counter()
        call()
        calls[name] = max(1, int(LEAST_S / max(time.perf_counter() - began, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            began = time.perf_counter()
            for _ in range(calls[name]):
                call()
            seconds[name].append((time.perf_counter() - began) / calls[name])
    return seconds


def dense_table(rows: int, dim: int) -> npt.NDArray[np.float32]:
    """An uncompressed (rows, dim) table with every page touched, in huge pages where the system has them."""
    table = np.empty((rows, dim), dtype=np.float32)  # numpy asks for huge pages itself
    table.reshape(-1)[:] = 0.5
    return table


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", type=Path, metavar="FILE")
    parser.add_argument("--table", help="one table instead of all")
    parser.add_argument("--batch", default="1,64,1024,16384", help="ids of a lookup, several separated by commas")
    parser.add_argument("--threads", type=int, default=1, help="threads of a lookup (default: 1)")
    parser.add_argument("--max-dense-gb", type=float, default=4.0, help="the uncompressed table is cut to this size")


def _run(args: argparse.Namespace) -> None:
    import hfh_embed

    batches = _batches(args.batch)
    if args.threads < 1:
        raise InputError(f"--threads is {args.threads}; give 1 or more")
    snapshot = hfh_embed.open(args.snapshot)
    names = [args.table] if args.table else list(snapshot)
    results = []
    with Progress() as progress:
        for number, name in enumerate(names):
            table = snapshot[name]
            least = table.embedding_dim * 4
            rows = min(table.num_embeddings, int(args.max_dense_gb * 1e9) // least)
            if rows < 1:
                raise InputError(f"--max-dense-gb {args.max_dense_gb:g} holds no row of {least} bytes; give more")
            dense = dense_table(rows, table.embedding_dim)
            for place, batch in enumerate(batches):
                progress(number * len(batches) + place, len(names) * len(batches), name)
                results.append(_one(table, dense, batch, args.threads))
    if args.json:
        print_json({"snapshot": str(args.snapshot), "results": results})
        return
    for name in names:
        table = snapshot[name]
        own = [row for row in results if row["table"] == name]
        print(
            f"{name}: {table.num_embeddings:,} ids x {table.embedding_dim}, ns a row, median of 7 turns, {args.threads} thread(s)"
        )
        if own[0]["dense_rows"] < table.num_embeddings:
            print(
                f"the uncompressed table was cut to {own[0]['dense_rows']:,} rows ({bytes_text(args.max_dense_gb * 1e9)})"
            )
        peers = [key.removesuffix("_ns") for key in own[0] if key.endswith("_ns") and key != "hfh_ns"]
        header = ("batch", "hfh", *peers, *(f"{peer} / hfh" for peer in peers))
        print_table(
            header,
            (
                (
                    row["batch"],
                    f"{row['hfh_ns']:.1f}",
                    *(f"{row[f'{peer}_ns']:.1f}" for peer in peers),
                    *(f"{row[f'{peer}_ns'] / row['hfh_ns']:.2f}" for peer in peers),
                )
                for row in own
            ),
        )


def _batches(text: str) -> list[int]:
    try:
        batches = [int(part) for part in text.split(",")]
    except ValueError:
        batches = [0]
    if not all(1 <= batch <= 2**24 for batch in batches):
        raise InputError(f"--batch {text!r} is not usable; give numbers from 1 to 16777216 separated by commas")
    return batches


def _one(table: Any, dense: npt.NDArray[np.float32], batch: int, threads: int) -> dict[str, Any]:
    """Uniform ids, a new batch at each call."""
    generator = np.random.default_rng(0)
    count = max(4, min(2**21 // batch, 2**15))  # so many that no cache holds the uncompressed rows of a round
    ids = generator.integers(0, len(dense), (count, batch))
    turn = iter(range(10**12))
    out = np.empty((batch, dense.shape[1]), dtype=np.float32)
    contenders: dict[str, Callable[[], object]] = {
        "hfh": lambda: table.lookup(ids[next(turn) % count], num_threads=threads),
        "numpy": lambda: np.take(dense, ids[next(turn) % count], axis=0),
    }
    if native_chosen():
        from hfh_embed.kernels._native import gather

        contenders["gather"] = lambda: gather(dense, ids[next(turn) % count], out)
    seconds = interleaved(contenders)
    medians = {f"{name}_ns": statistics.median(times) / batch * 1e9 for name, times in seconds.items()}
    return {"table": table.name, "batch": batch, "dense_rows": len(dense), "num_threads": threads} | medians


BENCH = Verb("lookups against an uncompressed gather, in the same run", _arguments, _run)
