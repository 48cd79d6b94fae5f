"""`hfh compress`: a trained table at a fraction of its bytes."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hfh_embed import __version__
from hfh_embed.arrow_rows import arrow_files
from hfh_embed.errors import InputError
from hfh_embed.verbs.base import Progress, Verb, bytes_text, print_json

if TYPE_CHECKING:
    from hfh_embed.codec.survey import Runner
    from hfh_embed.tables import DenseTable

__all__ = ["COMPRESS", "read_frequencies"]

IRRELEVANT = ("output", "json", "debug", "run", "verb", "ray")
"""Options that encoded chunks do not depend on."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="IN",
        type=Path,
        help=".npy, .npz, .safetensors, a torch checkpoint, word2vec or GloVe text, .parquet, .arrow, a folder of such shards",
    )
    parser.add_argument("-o", "--output", metavar="OUT.hfh", type=Path, required=True)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--ratio", type=float, help="dense float32 bytes / stored bytes: 20")
    size.add_argument("--min-cosine", type=float, metavar="C", help="the smallest table with this mean cosine: 0.95")
    size.add_argument("--min-recall", type=float, metavar="R", help="the smallest table with this recall@10: 0.8")
    parser.add_argument(
        "--metric",
        choices=("cosine", "dot", "l2"),
        default="cosine",
        help="whose neighbours count when forms are compared",
    )
    parser.add_argument("--nan", choices=("refuse", "zero"), default="refuse", help="rows with NaN or infinite values")
    parser.add_argument("--tensor", help="which tensor of a file with several")
    parser.add_argument("--name", help="the table's name in the snapshot (default: the tensor's or the file's)")
    parser.add_argument(
        "--frequencies", metavar="F", type=Path, help="how often each id is used: .npy, .csv or .parquet"
    )
    parser.add_argument(
        "--least-uses",
        type=int,
        metavar="K",
        default=0,
        help="ids with smaller frequencies take one bit, and their rows are zeros: 10",
    )
    parser.add_argument("--vocabulary", metavar="F", type=Path, help="text file with the key of each row, one a line")
    parser.add_argument(
        "--overlay", metavar="URL", help="Redis whose rows of this table, written by clients of the service, go into it"
    )
    parser.add_argument(
        "--overlay-prefix", default="hfh", help="begin of the keys there, as the service's redis_prefix"
    )
    parser.add_argument("--unknown", choices=("zero", "error"), default="error", help="ids outside the table get")
    parser.add_argument(
        "--padding-id",
        type=int,
        metavar="ID",
        help="an id whose row is zero and which bags leave out, as torch's padding_idx",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="local",
        help="encode by Ray: on this machine's processors, or on the cluster at 'auto' or HOST:PORT",
    )


def _run(args: argparse.Namespace) -> None:
    from hfh_embed.codec import compress
    from hfh_embed.codec.partial import Partial

    folder = args.output.absolute().parent
    if args.output.exists() and not args.output.is_file():
        raise InputError(f"the output {str(args.output)!r} is not a regular file; choose another name")
    if not folder.is_dir():
        raise InputError(f"the folder of the output {str(args.output)!r} does not exist; create it first")
    if not os.access(folder, os.W_OK):  # told now rather than after minutes of work
        raise InputError(f"folder {str(folder)!r} may not be written by this user; choose another")
    began = time.monotonic()
    with Progress() as progress:
        table, notes = _table(args)
        frequencies = read_frequencies(args.frequencies, table.rows.shape[0]) if args.frequencies else None
        with Partial(args.output, _identity(args, notes), _say) as partial, _runner(args) as run:
            try:
                snapshot = compress(
                    table.rows,
                    ratio=args.ratio,
                    min_cosine=args.min_cosine,
                    min_recall=args.min_recall,
                    metric=args.metric,
                    nan=args.nan,
                    name=args.name or table.name,
                    frequencies=frequencies,
                    least_uses=args.least_uses,
                    vocabulary=table.vocabulary,
                    unknown=args.unknown,
                    padding_id=args.padding_id,
                    seed=args.seed,
                    progress=progress,
                    partial=partial,
                    run=run,
                )
            except KeyboardInterrupt:
                progress.close()
                raise KeyboardInterrupt(partial.kept()) from None
            snapshot.metadata.update(notes)
            snapshot.save(args.output)
            partial.remove()
    spec = snapshot.spec
    seconds = time.monotonic() - began
    if args.json:
        print_json(
            {
                "file": str(args.output),
                "version": snapshot.version,
                "table": spec.tables[0].name,
                "nbytes": spec.nbytes,
                "dense_nbytes": spec.dense_nbytes,
                "ratio": spec.ratio,
                "seconds": seconds,
                "metadata": dict(snapshot.metadata),
            }
        )
        return
    shape = f"{spec.tables[0].num_embeddings:,} x {spec.tables[0].embedding_dim}"
    print(f"{args.output}: table {spec.tables[0].name!r}, {shape}, version {snapshot.version}")
    print(f"{bytes_text(spec.dense_nbytes)} -> {bytes_text(spec.nbytes)}: ratio {spec.ratio:.2f}, in {seconds:.0f} s")
    for key, value in snapshot.metadata.items():
        print(f"{key}: {value}")


def _runner(args: argparse.Namespace) -> AbstractContextManager[Runner[Any]]:
    """Who works on the chunks."""
    from hfh_embed.codec.survey import in_turn

    if args.ray is None:
        return nullcontext(in_turn)
    from hfh_embed.codec.cluster import Cluster

    return Cluster(args.ray)


def _say(text: str) -> None:
    print(f"hfh compress: {text}", file=sys.stderr)


def _identity(args: argparse.Namespace, notes: dict[str, str]) -> dict[str, object]:
    """What encoded chunks depend on, beside the fit: the input's files as they are now, and the options."""
    given = [*arrow_files(args.input), *(file for file in (args.frequencies, args.vocabulary) if file is not None)]
    seen = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in given]
    options = {key: value for key, value in vars(args).items() if key not in IRRELEVANT}
    return {"files": seen, "options": options, "notes": notes, "release": __version__}


def _table(args: argparse.Namespace) -> tuple[DenseTable, dict[str, str]]:
    """The dense table with the overlay's rows in it, and what to note about them in the snapshot."""
    from hfh_embed.tables import DenseTable, read_table, read_vocabulary

    if args.overlay is None:
        return read_table(args.input, args.tensor, vocabulary=args.vocabulary), {}
    from hfh_embed.folding import fold
    from hfh_embed.redis_rows import read_fresh

    table = read_table(args.input, args.tensor)
    fresh = read_fresh(args.overlay, args.name or table.name, args.overlay_prefix)
    rows = fold(np.asarray(table.rows[:]), fresh.ids, fresh.rows)
    keys = read_vocabulary(args.vocabulary) if args.vocabulary is not None else table.vocabulary
    if keys is not None and len(keys) != len(rows):
        raise InputError(
            f"the vocabulary has {len(keys):,} keys for {len(rows):,} rows, those of the overlay among them; "
            "give one key a row with --vocabulary"
        )
    notes = {"overlay_rows": str(len(fresh.ids)), "overlay_sequence": str(fresh.sequence)}
    return DenseTable(table.name, rows, keys), notes


def read_frequencies(path: Path, count: int) -> npt.NDArray[np.float64]:
    """How often each id is used, (count,) float64, from an .npy, .csv or .parquet file; InputError when it does not fit the table.

    A .csv file has a number a line, or ids and numbers in its first two columns, and may have a line of names; a .parquet file has a
    column of numbers, or one of ids and one of numbers. Ids that are not listed get 0.
    """
    readers = {".npy": _npy_columns, ".csv": _csv_columns, ".parquet": _parquet_columns}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path} ends in {path.suffix or 'nothing'!r}; frequencies come as {', '.join(readers)}")
    columns = readers[path.suffix.lower()](path)
    if len(columns) == 2:
        ids, values = columns
        if (
            ids.dtype.kind not in "iu"
            or (ids.size and (ids.min() < 0 or ids.max() >= count))
            or len(np.unique(ids)) < len(ids)
        ):
            raise InputError(f"{path}: the first column must have ids, each once, from 0 to {count - 1:,}")
        whole = np.zeros(count)
        whole[ids] = values
        values = whole
    else:
        values = columns[0]
    if values.shape != (count,) or values.dtype.kind not in "iuf":
        raise InputError(
            f"{path} holds {values.dtype} of shape {values.shape}; give one number for each of the {count:,} ids"
        )
    frequencies: npt.NDArray[np.float64] = values.astype(np.float64)
    if not np.isfinite(frequencies).all() or frequencies.min() < 0 or not frequencies.any():
        raise InputError(f"{path} has negative, infinite or only zero frequencies; give counts")
    return frequencies


def _npy_columns(path: Path) -> list[npt.NDArray[Any]]:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a readable .npy file ({error}); save one with numpy.save") from None
    if not isinstance(values, np.ndarray):
        raise InputError(f"{path} is an archive; save one array with numpy.save")
    return [values]


def _csv_columns(path: Path) -> list[npt.NDArray[Any]]:
    import csv

    lines: list[list[str]] = []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for fields in csv.reader(file):
                if fields:
                    lines.append(fields[:2])
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not readable CSV text ({error})") from None
    if lines and not _is_number(lines[0][-1]):
        lines = lines[1:]
    if not lines or len({len(fields) for fields in lines}) != 1:
        raise InputError(f"{path} needs one number a line, or an id and a number, in all lines alike")
    try:
        numbers = np.array([float(fields[-1]) for fields in lines])
        return [numbers] if len(lines[0]) == 1 else [np.array([int(fields[0]) for fields in lines]), numbers]
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path} has something that is not a number ({error})") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet_columns(path: Path) -> list[npt.NDArray[Any]]:
    from hfh_embed.arrow_rows import pyarrow_for

    pa, pq = pyarrow_for(path)
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a readable parquet file ({error})") from None
    if table.num_columns not in (1, 2) or any(column.null_count for column in table.columns):
        raise InputError(
            f"{path} has {table.num_columns} columns; give one of numbers, or one of ids and one of numbers, without gaps"
        )
    return [column.to_numpy() for column in table.columns]


COMPRESS = Verb("a trained table at a fraction of its bytes", _arguments, _run)
