"""`hfh`: the command line. One verb a function; what a verb needs is imported when it runs, so that `hfh` starts at once.

Exit codes: 0 done, 1 a check failed, 2 wrong usage or unusable input. Errors are one sentence on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from hfh_embed import __version__
from hfh_embed.errors import DamagedError, HFHError
from hfh_embed.verbs import VERBS, CheckFailedError

__all__ = ["main"]

OK, CHECK_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as one JSON document")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="hfh",
        description="Compress embedding tables, look rows up and serve them.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hfh {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in sorted(VERBS.items()):
        sub = verbs.add_parser(name, help=verb.help, description=verb.help, parents=[common], allow_abbrev=False)
        verb.add_arguments(sub)
        sub.set_defaults(run=verb.run)
    for point in entry_points(group="hfh.verbs"):  # `serve`: verbs of packages that this one does not import
        sub = verbs.add_parser(point.name, help=f"see hfh {point.name} --help", parents=[common], allow_abbrev=False)
        if point.name in arguments[:1]:
            plugin = point.load()
            sub.description = plugin.HELP
            plugin.add_arguments(sub)
            sub.set_defaults(run=plugin.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parser = _parser(given)
    except HFHError as error:  # a verb whose packages are missing
        print(f"hfh: {error}", file=sys.stderr)
        return USAGE
    args = parser.parse_args(given)
    try:
        code: int = args.run(args) or OK
        sys.stdout.flush()
        return code
    except CheckFailedError as error:
        return _say(args, error, CHECK_FAILED)
    except DamagedError as error:
        return _say(args, error, CHECK_FAILED)
    except HFHError as error:
        return _say(args, error, USAGE)
    except BrokenPipeError:  # the reader of our output went away, as in `hfh lookup … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        return _say(args, f"{error.filename or 'a file'}: {error.strerror or error}", USAGE)
    except MemoryError:
        return _say(args, "not enough memory for this; give smaller batches or a memory-mapped input (.npy)", USAGE)
    except KeyboardInterrupt as interrupt:
        kept = str(interrupt) or "nothing half-written is left"
        print(f"hfh: interrupted; {kept}", file=sys.stderr)
        return INTERRUPTED


def _say(args: argparse.Namespace, error: object, code: int) -> int:
    if args.debug:
        raise
    print(f"hfh {args.verb}: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
