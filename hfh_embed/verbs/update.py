"""`hfh update`: new or changed rows into a snapshot, with the fit that it has."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import hfh_embed
from hfh_embed.dense import DenseRows
from hfh_embed.errors import InputError
from hfh_embed.lookup import Table
from hfh_embed.verbs.base import CheckFailedError, Progress, Verb, print_json
from hfh_embed.verbs.files import pick_table

__all__ = ["UPDATE"]


class _Given(NamedTuple):
    rows: DenseRows
    ids: npt.NDArray[np.int64] | None
    keys: Sequence[str] | None
    notes: Mapping[str, str] = MappingProxyType({})


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="SNAPSHOT", type=Path, help="a snapshot that hfh compress made")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--rows", metavar="NEW", type=Path, help="dense rows, in any format that hfh compress reads")
    source.add_argument("--overlay", metavar="URL", help="Redis with the rows that clients of the service wrote")
    parser.add_argument(
        "--overlay-prefix", default="hfh", help="begin of the keys there, as the service's redis_prefix"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ids", metavar="IDS.npy", type=Path, help="the id of each row; ids from N on are added")
    which.add_argument("--append", action="store_true", help="all rows are added, with the ids from N on")
    parser.add_argument(
        "--keys",
        metavar="F",
        type=Path,
        help="text file with the key of each row, one a line; with --ids or --append of each added row",
    )
    parser.add_argument("--tensor", help="which tensor of NEW")
    parser.add_argument("--table", help="which table of SNAPSHOT")
    parser.add_argument(
        "-o", "--output", metavar="OUT.hfh", type=Path, help="the new snapshot (default: in the place of SNAPSHOT)"
    )
    parser.add_argument(
        "--max-error",
        type=float,
        metavar="E",
        help="exit 1, and write nothing, when the rows' relative error is above E",
    )


def _run(args: argparse.Namespace) -> None:
    from hfh_embed.codec import update

    if args.max_error is not None and not args.max_error >= 0:
        raise InputError(f"--max-error is {args.max_error}; give a relative error such as 0.1")
    output = args.output if args.output is not None else args.file
    began = time.monotonic()
    with hfh_embed.open(args.file) as snapshot, Progress() as progress:
        table = pick_table(snapshot, args.table)
        given = _from_overlay(args, table) if args.overlay is not None else _from_file(args, table)
        made = update(snapshot, given.rows, given.ids, keys=given.keys, table=table.name, progress=progress)
        made.snapshot.metadata.update(given.notes)
        refused = args.max_error is not None and made.relative_error > args.max_error
        if not refused:
            made.snapshot.save(output)
    if args.json:
        spec = made.snapshot.spec
        print_json(
            {
                "file": None if refused else str(output),
                "version": made.snapshot.version,
                "nbytes": spec.nbytes,
                "ratio": spec.ratio,
                "seconds": time.monotonic() - began,
            }
            | made.to_dict()
        )
    else:
        if not refused:
            print(f"{output}: table {made.table!r}, version {made.snapshot.version}")
        print(made.to_text())
    if refused:
        raise CheckFailedError(
            f"the rows' relative error is {made.relative_error:.4f}, above the {args.max_error:g} that was allowed; "
            "nothing was written. Compress the whole table again, or allow more"
        )


def _from_file(args: argparse.Namespace, table: Table) -> _Given:
    from hfh_embed.tables import read_table, read_vocabulary

    dense = read_table(args.rows, args.tensor)
    keys = read_vocabulary(args.keys) if args.keys is not None else None
    if args.ids is not None:
        return _Given(dense.rows, _ids(args.ids), keys)
    if args.append:
        count = table.num_embeddings
        return _Given(dense.rows, np.arange(count, count + dense.rows.shape[0]), keys or dense.vocabulary)
    if keys is None and table.vocabulary is not None:
        keys = list(dense.vocabulary) if dense.vocabulary is not None else None
    return _Given(dense.rows, None, keys)


def _from_overlay(args: argparse.Namespace, table: Table) -> _Given:
    from hfh_embed.redis_rows import read_fresh
    from hfh_embed.tables import read_vocabulary

    if args.ids is not None or args.append or args.tensor is not None:
        raise InputError("rows of an overlay bring their ids; leave --ids, --append and --tensor out")
    fresh = read_fresh(args.overlay, table.name, args.overlay_prefix)
    if not len(fresh.ids):
        raise InputError(f"the overlay has no rows of table {table.name!r}")
    keys = read_vocabulary(args.keys) if args.keys is not None else None
    notes = {"overlay_rows": str(len(fresh.ids)), "overlay_sequence": str(fresh.sequence)}
    return _Given(fresh.rows, fresh.ids, keys, notes)


def _ids(path: Path) -> npt.NDArray[np.int64]:
    try:
        ids = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a readable .npy file ({error}); save one with numpy.save") from None
    if not isinstance(ids, np.ndarray):
        raise InputError(f"{path} is an archive; save one array with numpy.save")
    return ids


UPDATE = Verb("new or changed rows into a snapshot, with the fit that it has", _arguments, _run)
"""Exit 1 and nothing written when ``--max-error`` is exceeded."""
