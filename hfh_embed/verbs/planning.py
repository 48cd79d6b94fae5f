"""`hfh plan`: what a ratio costs, to the byte, before doing it."""

from __future__ import annotations

import argparse

from hfh_embed.budget import PRESETS, plan
from hfh_embed.errors import InputError
from hfh_embed.layout import SnapshotSpec
from hfh_embed.spec import TableSpec
from hfh_embed.verbs.base import Verb, bytes_text, print_json, print_table, whole_number

__all__ = ["PLAN", "describe", "print_parts"]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ids", type=whole_number, metavar="N", help="ids of one table: 100M")
    parser.add_argument("--dim", type=whole_number, metavar="D", help="entries of its rows: 64")
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="NAME:N:D",
        help="a table of a group on one pool, may be repeated: users:1M:64",
    )
    parser.add_argument("--ratio", type=float, required=True, help="dense bytes / stored bytes: 100")
    parser.add_argument("--form", choices=sorted(PRESETS), help="a published method instead of the default")


def _run(args: argparse.Namespace) -> None:
    tables = dict(_table(text) for text in args.table)
    if len(tables) < len(args.table):
        raise InputError("two --table options have one name; names must differ")
    if args.ids is not None and args.dim is not None:
        tables.setdefault("table", (args.ids, args.dim))
    elif args.ids is not None or args.dim is not None or not tables:
        raise InputError("what to plan for is not complete; give --ids N and --dim D, or --table NAME:N:D")
    spec = plan(tables, args.ratio, form=PRESETS[args.form] if args.form else None)
    if args.json:
        print_json(describe(spec))
        return
    print_parts(spec)


def _table(text: str) -> tuple[str, tuple[int, int]]:
    try:
        name, n, dim = text.split(":")
        return name, (whole_number(n), whole_number(dim))
    except (ValueError, argparse.ArgumentTypeError):
        raise InputError(f"--table {text!r} is not of the form NAME:N:D; give for example users:1M:64") from None


def describe(spec: SnapshotSpec) -> dict[str, object]:
    """The counts of a spec, for --json."""
    return {
        "ratio": spec.ratio,
        "nbytes": spec.nbytes,
        "dense_nbytes": spec.dense_nbytes,
        "tables": {
            t.name: {
                "num_embeddings": t.num_embeddings,
                "embedding_dim": t.embedding_dim,
                "kept": t.num_kept,
                "unknown": t.unknown.value,
            }
            for t in spec.tables
        },
        "pools": {p.name: {"slots": p.slots, "bits": p.bits} for p in spec.pools},
        "parts": dict(spec.parts()),
    }


def _ids_text(table: TableSpec) -> str:
    kept = f", {table.num_kept:,} kept" if table.kept is not None else ""
    return f"{table.num_embeddings:,}{kept}"


def print_parts(spec: SnapshotSpec, most: int = 40) -> None:
    """Tables, then every stored part with its bytes and share, then the total."""
    print_table(
        ("table", "ids", "dim", "dense", "unknown ids"),
        ((t.name, _ids_text(t), t.embedding_dim, bytes_text(t.dense_nbytes), t.unknown.value) for t in spec.tables),
    )
    print()
    parts = list(spec.parts())
    shown = [(name, f"{count:,}", f"{count / spec.nbytes:.1%}") for name, count in parts[:most]]
    if parts[most:]:
        rest = sum(count for _, count in parts[most:])
        shown.append((f"({len(parts) - most} smaller parts)", f"{rest:,}", f"{rest / spec.nbytes:.1%}"))
    print_table(("part", "bytes", "share"), shown)
    print(
        f"\nstored {spec.nbytes:,} bytes ({bytes_text(spec.nbytes)}) for {spec.dense_nbytes:,} dense "
        f"({bytes_text(spec.dense_nbytes)}): ratio {spec.ratio:.2f}"
    )


PLAN = Verb("what a ratio will cost, to the byte, before doing it", _arguments, _run)
