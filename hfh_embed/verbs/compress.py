"""`hfh compress`: a trained table at a fraction of its bytes."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import InputError
from hfh_embed.verbs.base import Progress, Verb, bytes_text, print_json

if TYPE_CHECKING:
    from hfh_embed.tables import DenseTable

__all__ = ["COMPRESS", "read_frequencies"]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="IN",
        type=Path,
        help=".npy, .npz, .safetensors, a torch checkpoint, word2vec or GloVe text, .parquet",
    )
    parser.add_argument("-o", "--output", metavar="OUT.hfh", type=Path, required=True)
    parser.add_argument("--ratio", type=float, required=True, help="dense float32 bytes / stored bytes: 20")
    parser.add_argument("--tensor", help="which tensor of a file with several")
    parser.add_argument("--name", help="the table's name in the snapshot (default: the tensor's or the file's)")
    parser.add_argument("--frequencies", metavar="F", type=Path, help=".npy with how often each id is used")
    parser.add_argument("--vocabulary", metavar="F", type=Path, help="text file with the key of each row, one a line")
    parser.add_argument(
        "--overlay", metavar="URL", help="Redis whose rows of this table, written by clients of the service, go into it"
    )
    parser.add_argument(
        "--overlay-prefix", default="hfh", help="begin of the keys there, as the service's redis_prefix"
    )
    parser.add_argument("--unknown", choices=("zero", "error"), default="error", help="ids outside the table get")
    parser.add_argument("--seed", type=int, default=0)


def _run(args: argparse.Namespace) -> None:
    from hfh_embed.codec import compress

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
        frequencies = read_frequencies(args.frequencies, len(table.rows)) if args.frequencies else None
        snapshot = compress(
            table.rows,
            ratio=args.ratio,
            name=args.name or table.name,
            frequencies=frequencies,
            vocabulary=table.vocabulary,
            unknown=args.unknown,
            seed=args.seed,
            progress=progress,
        )
        snapshot.metadata.update(notes)
        snapshot.save(args.output)
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


def _table(args: argparse.Namespace) -> tuple[DenseTable, dict[str, str]]:
    """The dense table with the overlay's rows in it, and what to note about them in the snapshot."""
    from hfh_embed.tables import DenseTable, read_table, read_vocabulary

    if args.overlay is None:
        return read_table(args.input, args.tensor, vocabulary=args.vocabulary), {}
    from hfh_embed.folding import fold
    from hfh_embed.redis_rows import read_fresh

    table = read_table(args.input, args.tensor)
    fresh = read_fresh(args.overlay, args.name or table.name, args.overlay_prefix)
    rows = fold(table.rows, fresh.ids, fresh.rows)
    keys = read_vocabulary(args.vocabulary) if args.vocabulary is not None else table.vocabulary
    if keys is not None and len(keys) != len(rows):
        raise InputError(
            f"the vocabulary has {len(keys):,} keys for {len(rows):,} rows, those of the overlay among them; "
            "give one key a row with --vocabulary"
        )
    notes = {"overlay_rows": str(len(fresh.ids)), "overlay_sequence": str(fresh.sequence)}
    return DenseTable(table.name, rows, keys), notes


def read_frequencies(path: Path, count: int) -> npt.NDArray[np.float64]:
    """How often each id is used, (count,) float64, from an .npy file; InputError when it does not fit the table."""
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a readable .npy file ({error}); save one with numpy.save") from None
    if getattr(values, "shape", None) != (count,) or values.dtype.kind not in "iuf":
        shape = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise InputError(f"{path} holds {shape}; give one number for each of the {count:,} ids")
    frequencies: npt.NDArray[np.float64] = values.astype(np.float64)
    if not np.isfinite(frequencies).all() or frequencies.min() < 0 or not frequencies.any():
        raise InputError(f"{path} has negative, infinite or only zero frequencies; give counts")
    return frequencies


COMPRESS = Verb("a trained table at a fraction of its bytes", _arguments, _run)
