"""The verbs of the command line, one module each or a few that belong together."""

from __future__ import annotations

from hfh_embed.verbs import bench, compare, compress, evaluate, files, planning, update
from hfh_embed.verbs.base import CheckFailedError, Verb

__all__ = ["VERBS", "CheckFailedError", "Verb"]

VERBS: dict[str, Verb] = {
    "bench": bench.BENCH,
    "compare": compare.COMPARE,
    "compress": compress.COMPRESS,
    "eval": evaluate.EVAL,
    "export": files.EXPORT,
    "inspect": files.INSPECT,
    "lookup": files.LOOKUP,
    "plan": planning.PLAN,
    "update": update.UPDATE,
    "verify": files.VERIFY,
}
