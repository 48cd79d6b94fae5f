"""`hfh keys`: making API keys."""

from __future__ import annotations

import argparse
import json

from hfh_embed.errors import MissingDependencyError

__all__ = ["HELP", "add_arguments", "run"]

HELP = "make API keys for hfh serve"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with which properties."""
    parser.add_argument(
        "action", choices=["new"], help="new: print a new key, once, and the line that the keys file keeps"
    )
    parser.add_argument(
        "--scope",
        choices=["read", "write", "admin"],
        required=True,
        help="what it may do; each includes the ones before",
    )
    parser.add_argument("--name", required=True, help="whose it is; logs and messages say it")
    parser.add_argument("--rate", metavar="IDS/TIME", help="most ids in a time, such as 100000/second")


def run(args: argparse.Namespace) -> int:
    """Print a new key; it is not stored anywhere."""
    try:
        from service.auth import new_key
    except ImportError as error:
        raise MissingDependencyError(
            f"keys need {error.name}; install it with: pip install 'hfh-embed[serve]'"
        ) from None
    key, line = new_key(args.name, args.scope, args.rate)
    if args.json:
        print(json.dumps({"key": key, "line": line}, indent=2))
        return 0
    print("the key, shown this once; give it to its user:\n")
    print(f"    {key}\n")
    print("its line for the keys file (--keys-file), under `keys:`\n")
    print(f"    - {line}")
    return 0
