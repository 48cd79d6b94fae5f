"""Verbs on a snapshot file: inspect, verify, lookup, export."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

import hfh_embed
from hfh_embed.container import replacing
from hfh_embed.errors import InputError
from hfh_embed.lookup import Table
from hfh_embed.snapshot import Snapshot
from hfh_embed.verbs.base import Progress, Verb, print_json
from hfh_embed.verbs.planning import describe, print_parts

__all__ = ["EXPORT", "INSPECT", "LOOKUP", "VERIFY", "pick_table"]

EXPORT_BLOCK_BYTES = 2**25


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a snapshot")


def pick_table(snapshot: Snapshot, name: str | None) -> Table:
    """The table of this name, or the only one there is."""
    if name is not None:
        return snapshot[name]
    if len(snapshot) > 1:
        raise InputError(f"the snapshot has {len(snapshot)} tables; name one of {', '.join(list(snapshot)[:20])}")
    return next(iter(snapshot.values()))


def _inspect(args: argparse.Namespace) -> None:
    info = hfh_embed.inspect(args.file)
    if args.json:
        print_json(describe(info.spec) | dataclasses.asdict(info) | {"spec": None})
        return
    print(f"{args.file}: version {info.version}, format {info.format_version}")
    for key, value in info.metadata.items():
        print(f"{key}: {value}")
    print()
    print_parts(info.spec)


def _verify(args: argparse.Namespace) -> None:
    with Progress() as progress:
        hfh_embed.verify(args.file, lambda done, total: progress(done, total, "verify"))
    info = hfh_embed.inspect(args.file)
    if args.json:
        print_json({"file": str(args.file), "version": info.version, "ok": True})
    else:
        print(f"{args.file}: every checksum matches (version {info.version})")


def _lookup_arguments(parser: argparse.ArgumentParser) -> None:
    _file(parser)
    parser.add_argument("table", metavar="TABLE")
    parser.add_argument("ids", metavar="ID", nargs="+", help="ids, or with --keys strings")
    parser.add_argument("--keys", action="store_true", help="the IDs are string keys: words, names")


def _lookup(args: argparse.Namespace) -> None:
    with hfh_embed.open(args.file) as snapshot:
        table = snapshot[args.table]
        ids = table.ids_of(args.ids) if args.keys else np.array([_id(text) for text in args.ids], dtype=np.int64)
        rows = table.lookup(ids)
        if args.json:
            document: dict[str, object] = {"table": table.name, "version": snapshot.version, "ids": ids.tolist()}
            print_json(document | ({"keys": args.ids} if args.keys else {}) | {"embeddings": rows.tolist()})
            return
        for name, row in zip(args.ids, rows, strict=True):
            print(name, " ".join(f"{value:.6g}" for value in row))


def _id(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise InputError(f"{text!r} is not an id; give integers, or strings with --keys") from None
    if not 0 <= number < 2**63:
        raise InputError(f"id {text} is not allowed; ids are integers from 0 to 2**63 - 1")
    return number


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _file(parser)
    parser.add_argument("table", metavar="TABLE")
    parser.add_argument("-o", "--output", metavar="OUT.npy", type=Path, required=True)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")


def _export(args: argparse.Namespace) -> None:
    if args.output.suffix != ".npy":
        raise InputError(f"the output {str(args.output)!r} must end in .npy")
    dtype = np.dtype(args.dtype)
    with hfh_embed.open(args.file) as snapshot, Progress() as progress:
        table = snapshot[args.table]
        n, dim = table.num_embeddings, table.embedding_dim
        header = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": (n, dim)}
        block = max(1, EXPORT_BLOCK_BYTES // (4 * dim))
        with replacing(args.output) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, n, block):
                rows = table.lookup(np.arange(start, min(start + block, n)), dtype=dtype.type)
                file.write(rows.data)
                progress(min(start + block, n), n, "export")
    size = args.output.stat().st_size
    if args.json:
        print_json(
            {"table": table.name, "shape": [n, dim], "dtype": args.dtype, "file": str(args.output), "nbytes": size}
        )
    else:
        print(f"{args.output}: {n:,} x {dim} {args.dtype}, {size:,} bytes")


INSPECT = Verb("a snapshot's tables, parts and bytes, from its header alone", _file, _inspect)
VERIFY = Verb("read a snapshot and compare every checksum; exit 1 when damaged", _file, _verify)
LOOKUP = Verb("rows of a table by id or key", _lookup_arguments, _lookup)
EXPORT = Verb("a table back to a dense .npy", _export_arguments, _export)
