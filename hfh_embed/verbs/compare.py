"""`hfh compare`: methods of compression at equal bytes, on the user's own table."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import InputError, RatioError
from hfh_embed.lookup import Table
from hfh_embed.verbs.base import Progress, Verb, print_json, print_table

__all__ = ["COMPARE"]

OURS = "hfh compress"
SLOW = ("faiss OPQ", "faiss LSQ")
TAKES_LONG = "can take hours; --slow measures it"
LARGEST_BYTES = 2**31


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", type=Path, help="a table, as for hfh compress")
    parser.add_argument("--ratios", default="8,16,32,64", help="dense bytes / stored bytes, separated by commas")
    parser.add_argument("--tensor", help="which tensor of a file with several")
    parser.add_argument("--queries", type=int, default=500, help="rows whose neighbours are compared (default: 500)")
    parser.add_argument("--slow", action="store_true", help=f"also {' and '.join(SLOW)}, which can take hours")
    parser.add_argument("--seed", type=int, default=0)


def _ratios(text: str) -> list[float]:
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError:
        ratios = []
    if not ratios or not all(1 <= ratio < float("inf") for ratio in ratios):
        raise InputError(f"--ratios is {text!r}; give numbers from 1 on, separated by commas, such as 8,16,32")
    return ratios


def _run(args: argparse.Namespace) -> None:
    from hfh_embed.codec.peers import PEERS
    from hfh_embed.fidelity import compare
    from hfh_embed.tables import read_table

    ratios = _ratios(args.ratios)
    table = read_table(args.input, args.tensor)
    if (nbytes := 4 * math.prod(table.rows.shape)) > LARGEST_BYTES:
        raise InputError(f"{args.input} takes {nbytes:,} bytes; compare a part of at most {LARGEST_BYTES:,}")
    rows = np.ascontiguousarray(table.rows[:], dtype=np.float32)
    if not np.isfinite(rows).all():
        raise InputError(f"{args.input} holds NaN or infinite values; remove or mend them")
    found: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = [] if args.slow else [{"method": name, "reason": TAKES_LONG} for name in SLOW]
    with Progress() as progress:
        for ratio in ratios:
            for method in (OURS, *(name for name in PEERS if args.slow or name not in SLOW)):
                began = time.monotonic()
                made = _ours(rows, ratio, args.seed, progress) if method == OURS else _peer(rows, ratio, method)
                if made is None:
                    left_out.append({"ratio": ratio, "method": method, "reason": "no size of it fits"})
                    continue
                fidelity = compare(made[0], rows, queries=args.queries, seed=args.seed, progress=progress)
                found.append(
                    {
                        "ratio": ratio,
                        "method": method,
                        "real_ratio": rows.nbytes / made[1],
                        "nbytes": made[1],
                        "relative_error": fidelity.relative_error,
                        "recall_at_10": fidelity.recall_at_10,
                        "mean_cosine": fidelity.mean_cosine,
                        "seconds": time.monotonic() - began,
                    }
                )
    if args.json:
        print_json({"table": table.name, "shape": rows.shape, "methods": found, "left_out": left_out})
        return
    print_table(
        ("at most", "method", "real ratio", "error", "recall@10", "cosine", "seconds"),
        (
            (
                f"1/{row['ratio']:g}",
                row["method"],
                f"{row['real_ratio']:.2f}",
                f"{row['relative_error']:.4f}",
                f"{row['recall_at_10']:.4f}",
                f"{row['mean_cosine']:.4f}",
                f"{row['seconds']:.0f}",
            )
            for row in found
        ),
    )
    for row in left_out:
        where = f" at 1/{row['ratio']:g}" if "ratio" in row else ""
        print(f"left out: {row['method']}{where}: {row['reason']}")


def _ours(rows: npt.NDArray[np.float32], ratio: float, seed: int, progress: Progress) -> tuple[Table, int] | None:
    from hfh_embed.codec import compress

    try:
        snapshot = compress(rows, ratio=ratio, seed=seed, progress=progress)
    except RatioError:
        return None
    return snapshot["table"], snapshot.nbytes


def _peer(rows: npt.NDArray[np.float32], ratio: float, method: str) -> tuple[Table, int] | None:
    """A peer's decoded rows as a table, and the bytes that it takes."""
    from hfh_embed.codec.peers import PEERS, dense_table

    made = PEERS[method](rows, int(rows.nbytes / ratio))
    return None if made is None else (dense_table(made[0]), made[1])


COMPARE = Verb("methods of compression at equal bytes, on your own table", _arguments, _run)
