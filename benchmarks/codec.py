"""Trained tables, compressed: ours against faiss' quantisers and few-bit rows, at equal total bytes, and how fast rows come back.

    python -m benchmarks.codec [--tables minilm words ...] [--ratios 8 16 ...] [--methods ...] [--redo] [--limit-s 600]
    python -m benchmarks.codec --speed        decoding and encoding, on a quiet machine
    python -m benchmarks.codec --judge        the targets by the rows there are
    python -m benchmarks.codec --plot         the picture of docs/compress.md

Each cell's row is written as it ends, and cells that the file has are left alone: an interrupted run goes on when started again.
``--redo`` measures the named methods anew.

Everything counts: codes, codebooks, rotations, scales. A peer comes in whole sizes: the largest that fits dense / ratio. Errors are
squared error over squared rows; recall@10 is of true neighbours by cosine, both sides compressed. Of a larger table, a sample of
100,000 rows is compared, and the bytes are the whole table's. A peer that has not ended after the limit is left out and said so.
The bound is the rate-distortion bound of Gaussian rows with the table's own covariance.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.codec_plot import draw
from benchmarks.codec_speed import measure_speed
from benchmarks.readme_table import NAMES
from benchmarks.record import Recorder
from benchmarks.trained import TABLES, trained_table
from hfh_embed.codec import compress
from hfh_embed.codec.allocation import error_bound
from hfh_embed.codec.peers import PEERS, dense_table
from hfh_embed.fidelity import compare

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
RATIOS = (8, 16, 32, 64, 128)
OURS = "hfh compress"
GAP_SHARES = {16: 1 / 2, 64: 1 / 3}
COMPARED = 100_000
OURS_LIMIT_S = 3600


def bound(rows: F32, ratio: float) -> float:
    """The relative error that Gaussian rows of this covariance cannot go below."""
    centred = rows - rows.mean(axis=0)
    variance = np.linalg.eigvalsh(np.cov(centred.T.astype(np.float64)))[::-1]
    return error_bound(np.maximum(variance, 0), 32 * rows.shape[1] / ratio) / float(
        (rows.astype(np.float64) ** 2).sum(1).mean()
    )


def compared_ids(count: int) -> I64:
    """The ids whose rows are compared, ascending."""
    if count <= COMPARED:
        return np.arange(count)
    return np.sort(np.random.default_rng(1).choice(count, COMPARED, replace=False))


def _ours(rows: F32, ratio: int, ids: I64) -> tuple[F32, int, str]:
    snapshot = compress(rows, ratio=ratio)
    return snapshot["table"].lookup(ids), snapshot.nbytes, snapshot.metadata["method"]


def _peer(rows: F32, ratio: int, ids: I64, name: str) -> tuple[F32, int, str] | None:
    made = PEERS[name](rows, rows.nbytes // ratio, ids)
    return None if made is None else (made[0], made[1], "")


def measure(table: str, ratio: int, method: str) -> dict[str, Any] | None:
    """One method's figures, or None where no size of it fits."""
    rows = np.ascontiguousarray(trained_table(table), dtype=np.float32)
    ids = compared_ids(len(rows))
    began = time.perf_counter()
    made = _ours(rows, ratio, ids) if method == OURS else _peer(rows, ratio, ids, method)
    seconds = time.perf_counter() - began
    if made is None:
        return None
    fidelity = compare(dense_table(made[0]), rows[ids], queries=1000)
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
    sender.close()
    try:
        return receiver.recv() if receiver.poll(limit_s) else "timeout"
    finally:
        process.kill()
        process.join()


def measure_grid(recorder: Recorder, tables: list[str], ratios: list[int], methods: list[str], limit_s: float) -> None:
    """The cells that the file lacks, method by method."""
    print(f"{'table':<15}{'ratio':>6}  {'method':<14}{'real ratio':>11}{'error':>9}{'recall@10':>11}{'seconds':>9}")
    least: dict[tuple[str, int], float] = {}
    for method in methods:
        for table in tables:
            for ratio in ratios:
                cell: dict[str, Any] = {"table": table, "ratio": ratio, "method": method}
                if recorder.find(**cell):
                    continue
                rows = trained_table(table)
                if (table, ratio) not in least:
                    least[table, ratio] = round(bound(np.asarray(rows), ratio), 5)
                limit = OURS_LIMIT_S if method == OURS else limit_s
                figures = limited(limit, measure, table, ratio, method)
                known = cell | {"shape": list(rows.shape), "bound": least[table, ratio]}
                if figures is None:
                    recorder.row(**known, fits=False)
                    text = "does not fit"
                elif figures == "timeout":
                    recorder.row(**known, timeout_s=limit)
                    text = f"not in {limit:.0f} s"
                else:
                    recorder.row(**known, **figures)
                    text = (
                        f"{figures['real_ratio']:>11.2f}{figures['relative_error']:>9.4f}"
                        f"{figures['recall_at_10']:>11.4f}{figures['seconds']:>9.1f}"
                    )
                print(f"{table:<15}{ratio:>6}  {method:<14}{text}", flush=True)


def judged(recorder: Recorder, table: str, ratio: int) -> list[tuple[str, bool]]:
    """The targets of one table and ratio, each with whether it was met; none where ours was not measured."""
    found = {row["method"]: row for row in recorder.find(table=table, ratio=ratio) if "relative_error" in row}
    ours = found.pop(OURS, None)
    if ours is None:
        return []
    lines = []
    for name, peer in sorted(found.items()):
        better = ours["relative_error"] < peer["relative_error"] and ours["recall_at_10"] > peer["recall_at_10"]
        figures = (
            f"{ours['relative_error']:.4f} against {peer['relative_error']:.4f}, "
            f"recall {ours['recall_at_10']:.3f} against {peer['recall_at_10']:.3f}"
        )
        lines.append((f"{table} {ratio}x: better than {name}: {figures}", better))
    if ratio in GAP_SHARES and "faiss PQ" in found:
        gap = found["faiss PQ"]["relative_error"] - ours["bound"]
        closed = (found["faiss PQ"]["relative_error"] - ours["relative_error"]) / gap if gap > 0 else 1.0
        wanted = GAP_SHARES[ratio]
        lines.append(
            (f"{table} {ratio}x: {closed:.0%} of PQ's gap to the bound closed, at least {wanted:.0%}", closed >= wanted)
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--ratios", type=int, nargs="*", default=RATIOS)
    parser.add_argument("--methods", nargs="*", default=[OURS, *PEERS], choices=[OURS, *PEERS])
    parser.add_argument("--redo", action="store_true", help="measure these cells anew")
    parser.add_argument("--limit-s", type=float, default=600, help="a peer that takes longer is left out")
    parser.add_argument("--speed", action="store_true", help="decoding and encoding instead of the grid")
    parser.add_argument("--judge", action="store_true", help="only the targets")
    parser.add_argument("--plot", action="store_true", help="draw the rows, measure nothing")
    args = parser.parse_args()
    recorder = Recorder("codec", resume=True)
    outcomes: list[tuple[str, bool]] = []
    if args.plot:
        draw(recorder.find(), NAMES)
        return
    if args.speed:
        outcomes = measure_speed(recorder)
    else:
        if args.redo:
            for table in args.tables:
                for ratio in args.ratios:
                    for method in args.methods:
                        recorder.drop(table=table, ratio=ratio, method=method)
        if not args.judge:
            measure_grid(recorder, args.tables, args.ratios, args.methods, args.limit_s)
        outcomes = [line for table in args.tables for ratio in args.ratios for line in judged(recorder, table, ratio)]
    for text, passed in outcomes:
        print(f"{'pass' if passed else 'FAIL'}  {text}")


if __name__ == "__main__":
    main()
