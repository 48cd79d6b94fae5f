"""Trained tables, compressed: ours against faiss' quantisers and few-bit rows, at equal total bytes, and how fast rows come back.

    python -m benchmarks.codec [--tables minilm words ...] [--ratios 8 16 ...] [--limit-s 90]

Everything counts: codes, codebooks, rotations, scales. A peer comes in whole sizes: the largest that fits dense / ratio. Errors are
squared error over squared rows; recall@10 is of true neighbours by cosine, both sides compressed. A peer that has not ended after the
limit is left out and said so. The bound is the rate-distortion bound of Gaussian rows with the table's own covariance.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.record import Recorder
from benchmarks.trained import TABLES, trained_table
from hfh_embed.codec import compress
from hfh_embed.codec.allocation import error_bound
from hfh_embed.codec.peers import PEERS, product_parts
from hfh_embed.fidelity import compare
from hfh_embed.layout import SnapshotSpec
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import PrivateSpec, TableSpec

F32 = npt.NDArray[np.float32]
RATIOS = (8, 16, 32, 64, 128)
OURS = "hfh compress"
GAP_SHARES = {16: 1 / 2, 64: 1 / 3}
BATCH, ROUNDS = 1024, 40


def bound(rows: F32, ratio: float) -> float:
    """The relative error that Gaussian rows of this covariance cannot go below."""
    centred = rows - rows.mean(axis=0)
    variance = np.linalg.eigvalsh(np.cov(centred.T.astype(np.float64)))[::-1]
    return error_bound(np.maximum(variance, 0), 32 * rows.shape[1] / ratio) / float(
        (rows.astype(np.float64) ** 2).sum(1).mean()
    )


def _ours(rows: F32, ratio: int) -> tuple[Any, int, str]:
    snapshot = compress(rows, ratio=ratio)
    return snapshot["table"], snapshot.nbytes, snapshot.metadata["method"]


def _peer(rows: F32, ratio: int, name: str) -> tuple[Any, int, str] | None:
    made = PEERS[name](rows, rows.nbytes // ratio)
    if made is None:
        return None
    spec = SnapshotSpec((TableSpec("table", *rows.shape, private=PrivateSpec(rows.shape[1], 32)),))
    decoded = Snapshot(spec, {"table/table/private.values": np.ascontiguousarray(made[0], dtype=np.float32)})
    return decoded["table"], made[1], ""


def measure(table: str, ratio: int, method: str, queries: int) -> dict[str, Any] | None:
    """One method's figures, or None where no size of it fits."""
    rows = np.ascontiguousarray(trained_table(table), dtype=np.float32)
    began = time.perf_counter()
    made = _ours(rows, ratio) if method == OURS else _peer(rows, ratio, method)
    seconds = time.perf_counter() - began
    if made is None:
        return None
    fidelity = compare(made[0], rows, queries=queries)
    return {
        "real_ratio": round(rows.nbytes / made[1], 3),
        "nbytes": made[1],
        "relative_error": round(fidelity.relative_error, 5),
        "recall_at_10": round(fidelity.recall_at_10, 4),
        "recall_margin": round(fidelity.recall_margin, 4),
        "mean_cosine": round(fidelity.mean_cosine, 5),
        "seconds": round(seconds, 1),
        "form": made[2],
    }


def limited(limit_s: float, work: Callable[..., Any], *arguments: Any) -> Any:
    """What work returns, in a process that is ended after the limit; "timeout" then."""

    def run() -> None:
        sender.send(work(*arguments))

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run)
    process.start()
    try:
        return receiver.recv() if receiver.poll(limit_s) else "timeout"
    finally:
        process.kill()
        process.join()


def decode_speed(table: str, ratio: int) -> dict[str, float]:
    """Microseconds per row on one thread, ours and faiss' reconstruct_batch of the product quantiser of equal bytes, turn by turn."""
    rows = np.ascontiguousarray(trained_table(table), dtype=np.float32)
    ours = compress(rows, ratio=ratio)["table"]
    n, dim = rows.shape
    faiss.omp_set_num_threads(1)
    parts = product_parts(n, dim, rows.nbytes // ratio)
    wide = np.ascontiguousarray(np.pad(rows, ((0, 0), (0, -dim % parts))))
    index = faiss.IndexPQ(wide.shape[1], parts, 8)
    index.train(wide[:65_536])
    index.add(wide)
    generator = np.random.default_rng(0)
    times: dict[str, list[float]] = {"ours": [], "faiss": []}
    out = np.empty((BATCH, dim), dtype=np.float32)
    for _ in range(ROUNDS):
        ids = generator.integers(0, n, BATCH)
        for name, call in (
            ("ours", lambda ids=ids: ours.lookup(ids, out=out)),
            ("faiss", lambda ids=ids: index.reconstruct_batch(ids)),
        ):
            began = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - began) / BATCH * 1e6)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--ratios", type=int, nargs="*", default=RATIOS)
    parser.add_argument("--methods", nargs="*", default=[OURS, *PEERS])
    parser.add_argument("--limit-s", type=float, default=90, help="a peer that takes longer is left out")
    args = parser.parse_args()
    recorder = Recorder("codec")
    outcomes: list[tuple[str, bool]] = []
    print(f"{'table':<15}{'ratio':>6}  {'method':<14}{'real ratio':>11}{'error':>9}{'recall@10':>11}{'seconds':>9}")
    for table in args.tables:
        rows = np.ascontiguousarray(trained_table(table), dtype=np.float32)
        queries = 1000 if len(rows) < 200_000 else 200
        for ratio in args.ratios:
            least = bound(rows, ratio)
            found: dict[str, dict[str, Any]] = {}
            for method in args.methods:
                limit = 3600 if method == OURS else args.limit_s
                figures = limited(limit, measure, table, ratio, method, queries)
                if not isinstance(figures, dict):
                    if figures == "timeout":
                        recorder.row(table=table, ratio=ratio, method=method, timeout_s=args.limit_s)
                    print(f"{table:<15}{ratio:>6}  {method:<14}{figures or 'does not fit':>11}", flush=True)
                    continue
                found[method] = figures
                recorder.row(
                    table=table, shape=list(rows.shape), ratio=ratio, method=method, bound=round(least, 5), **figures
                )
                print(
                    f"{table:<15}{ratio:>6}  {method:<14}{figures['real_ratio']:>11.2f}{figures['relative_error']:>9.4f}"
                    f"{figures['recall_at_10']:>11.4f}{figures['seconds']:>9.1f}",
                    flush=True,
                )
            outcomes += judged(table, ratio, found, least)
        times = limited(3600, decode_speed, table, 32)
        limit_us = 0.15 if rows.shape[1] <= 64 else 1.5
        recorder.row(table=table, ratio=32, method="decode", us_per_row=times)
        outcomes.append(
            (
                f"{table} 32x: {times['ours']:.3f} us a row, at most {limit_us} (D = {rows.shape[1]})",
                times["ours"] <= limit_us,
            )
        )
        faster = times["faiss"] / times["ours"]
        outcomes.append((f"{table} 32x: decoded {faster:.1f} times as fast as faiss PQ, at least 3", faster >= 3))
    for text, passed in outcomes:
        print(f"{'pass' if passed else 'FAIL'}  {text}")


def judged(table: str, ratio: int, found: dict[str, dict[str, Any]], least: float) -> list[tuple[str, bool]]:
    """The targets of one table and ratio, each with whether it was met."""
    ours = found.get(OURS)
    if ours is None:
        return [(f"{table} {ratio}x: no form fits", False)]
    lines = []
    for name in found.keys() - {OURS}:
        peer = found[name]
        better = ours["relative_error"] < peer["relative_error"] and ours["recall_at_10"] > peer["recall_at_10"]
        lines.append((f"{table} {ratio}x: better than {name} in error and recall", better))
    if ratio in GAP_SHARES and "faiss PQ" in found:
        gap = found["faiss PQ"]["relative_error"] - least
        closed = (found["faiss PQ"]["relative_error"] - ours["relative_error"]) / gap if gap > 0 else 1.0
        lines.append(
            (
                f"{table} {ratio}x: {closed:.0%} of PQ's gap to the bound closed, at least {GAP_SHARES[ratio]:.0%}",
                closed >= GAP_SHARES[ratio],
            )
        )
    return sorted(lines)


if __name__ == "__main__":
    main()
