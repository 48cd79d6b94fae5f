"""`hfh eval`: what compression lost, against the dense table."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import hfh_embed
from hfh_embed.errors import InputError
from hfh_embed.fidelity import LARGE_ROWS, Fidelity, compare
from hfh_embed.snapshot import Snapshot
from hfh_embed.verbs.base import CheckFailedError, Progress, Verb, print_json, print_table
from hfh_embed.verbs.compress import read_frequencies
from hfh_embed.verbs.files import pick_table
from hfh_embed.verbs.planning import print_parts

__all__ = ["EVAL"]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a snapshot")
    parser.add_argument("--against", metavar="DENSE", type=Path, required=True, help="the table that was compressed")
    parser.add_argument("--tensor", help="which tensor of DENSE")
    parser.add_argument("--table", help="which table of FILE")
    parser.add_argument("--also", metavar="FILE", type=Path, nargs="+", default=[], help="other snapshots of the table")
    parser.add_argument(
        "--frequencies", metavar="F", type=Path, help="how often each id is used: .npy, .csv or .parquet"
    )
    parser.add_argument("--queries", type=int, default=1000, help="rows whose neighbours are compared (default: 1000)")
    parser.add_argument(
        "--sample",
        type=int,
        metavar="ROWS",
        help=f"compare so many rows instead of all, 0 for all (default: all up to {LARGE_ROWS:,}, of larger tables so many)",
    )
    parser.add_argument("--min-cosine", type=float, metavar="C", help="exit 1 when the mean cosine is below C")
    parser.add_argument(
        "--plot", metavar="OUT.png", type=Path, help="draw error by rank, quality by bytes, rows before and after"
    )
    parser.add_argument("--seed", type=int, default=0)


def _run(args: argparse.Namespace) -> None:
    from hfh_embed.plots import Measured, Spectrum, check_plot, plot_fidelity
    from hfh_embed.tables import read_table

    if args.min_cosine is not None and not -1 <= args.min_cosine <= 1:
        raise InputError(f"--min-cosine is {args.min_cosine}; cosines lie from -1 to 1")
    if args.plot:
        check_plot(args.plot)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress())
        snapshots = [stack.enter_context(hfh_embed.open(file)) for file in (args.file, *args.also)]
        dense = read_table(args.against, args.tensor).rows
        frequencies = read_frequencies(args.frequencies, dense.shape[0]) if args.frequencies else None
        spectrum = Spectrum.of(dense, args.seed)
        measured = []
        for file, snapshot in zip((args.file, *args.also), snapshots, strict=True):
            table = pick_table(snapshot, args.table)
            found = compare(
                table,
                dense,
                frequencies=frequencies,
                queries=args.queries,
                sample=LARGE_ROWS if args.sample is None else args.sample or None,
                seed=args.seed,
                progress=progress,
            )
            measured.append(Measured(file.stem, table, snapshot.nbytes, found))
        if args.plot:
            plot_fidelity(args.plot, dense, measured, spectrum, frequencies, args.seed)
        bounds = [spectrum.bound(8 * one.table.nbytes / dense.shape[0]) for one in measured]
        progress.close()
        _show(args, snapshots, [one.fidelity for one in measured], bounds)
    result = measured[0].fidelity
    if args.min_cosine is not None and result.mean_cosine < args.min_cosine:
        raise CheckFailedError(
            f"the mean cosine is {result.mean_cosine:.4f}, below the {args.min_cosine:g} that was asked for"
        )


def _show(args: argparse.Namespace, snapshots: list[Snapshot], found: list[Fidelity], bounds: list[float]) -> None:
    """The first snapshot in full, the others by their main figures."""
    if args.json:
        documents = [
            fidelity.to_dict()
            | {"rate_distortion_bound": bound}
            | {"ratio": snapshot.ratio, "nbytes": snapshot.nbytes, "parts": dict(snapshot.parts())}
            for snapshot, fidelity, bound in zip(snapshots, found, bounds, strict=True)
        ]
        also = [{"file": str(file)} | one for file, one in zip(args.also, documents[1:], strict=True)]
        print_json(documents[0] | ({"also": also} if also else {}))
        return
    print(found[0].to_text())
    print(f"bound           {bounds[0]:.4f}  (relative error of Gaussian rows with these covariances and bytes)")
    print()
    print_parts(snapshots[0].spec)
    if args.also:
        print()
        print_table(
            ("snapshot", "ratio", "cosine", "error", "bound", "recall@1", "recall@10", "recall@100"),
            (
                (
                    str(file),
                    f"{snapshot.ratio:.2f}",
                    f"{one.mean_cosine:.4f}",
                    f"{one.relative_error:.4f}",
                    f"{bound:.4f}",
                    f"{one.recall_at_1:.4f}",
                    f"{one.recall_at_10:.4f}",
                    f"{one.recall_at_100:.4f}",
                )
                for file, snapshot, one, bound in zip((args.file, *args.also), snapshots, found, bounds, strict=True)
            ),
        )


EVAL = Verb("what compression lost: cosine, error, neighbours", _arguments, _run)
