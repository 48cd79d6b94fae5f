"""`hfh eval`: what compression lost, against the dense table."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import hfh_embed
from hfh_embed.dense import DenseRows
from hfh_embed.errors import InputError
from hfh_embed.lookup import Table
from hfh_embed.verbs.base import CheckFailedError, Progress, Verb, print_json
from hfh_embed.verbs.compress import read_frequencies
from hfh_embed.verbs.files import pick_table
from hfh_embed.verbs.planning import print_parts

__all__ = ["EVAL"]

BOUND_ROWS = 65_536


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a snapshot")
    parser.add_argument("--against", metavar="DENSE", type=Path, required=True, help="the table that was compressed")
    parser.add_argument("--tensor", help="which tensor of DENSE")
    parser.add_argument("--table", help="which table of FILE")
    parser.add_argument("--frequencies", metavar="F", type=Path, help=".npy with how often each id is used")
    parser.add_argument("--queries", type=int, default=1000, help="rows whose neighbours are compared (default: 1000)")
    parser.add_argument("--min-cosine", type=float, metavar="C", help="exit 1 when the mean cosine is below C")
    parser.add_argument("--plot", metavar="OUT.png", type=Path, help="draw the error by frequency or rank")
    parser.add_argument("--seed", type=int, default=0)


def _run(args: argparse.Namespace) -> None:
    from hfh_embed.fidelity import compare
    from hfh_embed.tables import read_table

    if args.min_cosine is not None and not -1 <= args.min_cosine <= 1:
        raise InputError(f"--min-cosine is {args.min_cosine}; cosines lie from -1 to 1")
    with hfh_embed.open(args.file) as snapshot, Progress() as progress:
        table = pick_table(snapshot, args.table)
        dense = read_table(args.against, args.tensor).rows
        frequencies = read_frequencies(args.frequencies, dense.shape[0]) if args.frequencies else None
        result = compare(table, dense, frequencies=frequencies, queries=args.queries, seed=args.seed, progress=progress)
        if args.plot:
            from hfh_embed.plots import plot_errors

            plot_errors(table, dense, args.plot, frequencies=frequencies)
        least = _bound(table, dense, args.seed)
        progress.close()
        if args.json:
            print_json(
                result.to_dict()
                | {"rate_distortion_bound": least}
                | {"ratio": snapshot.ratio, "nbytes": snapshot.nbytes, "parts": dict(snapshot.parts())}
            )
        else:
            print(result.to_text())
            print(f"bound           {least:.4f}  (relative error of Gaussian rows with these covariances and bytes)")
            print()
            print_parts(snapshot.spec)
    if args.min_cosine is not None and result.mean_cosine < args.min_cosine:
        raise CheckFailedError(
            f"the mean cosine is {result.mean_cosine:.4f}, below the {args.min_cosine:g} that was asked for"
        )


def _bound(table: Table, dense: DenseRows, seed: int) -> float:
    """The rate-distortion bound at the table's own bytes, from the covariance of at most BOUND_ROWS rows."""
    from hfh_embed.codec.allocation import error_bound

    picked = np.arange(dense.shape[0])
    if dense.shape[0] > BOUND_ROWS:
        picked = np.sort(np.random.default_rng(seed).choice(dense.shape[0], BOUND_ROWS, replace=False))
    rows = np.asarray(dense[picked], dtype=np.float64)
    centred = rows - rows.mean(axis=0)
    variance = np.linalg.eigvalsh(centred.T @ centred / len(rows))[::-1]
    energy = float((rows**2).sum(axis=1).mean())
    return error_bound(np.maximum(variance, 0), 8 * table.nbytes / dense.shape[0]) / energy if energy else 0.0


EVAL = Verb("what compression lost: cosine, error, neighbours", _arguments, _run)
