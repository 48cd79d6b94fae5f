"""Compressed embedding tables: rows are computed from one small pool instead of stored.

    import hfh_embed

    snapshot = hfh_embed.open("tables.hfh")          # memory-mapped; instant on any size
    snapshot["users"].lookup([1, 2, 3])              # (3, D) float32

Importing this package loads numpy and nothing heavier; ``hfh_embed.nn`` has the torch layers.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from hfh_embed.errors import (
    DamagedError,
    HFHError,
    InputError,
    MissingDependencyError,
    RatioError,
    SnapshotError,
    SpecError,
    TableNotFoundError,
    UnknownIdError,
)
from hfh_embed.hashing import key_ids
from hfh_embed.lookup import Table
from hfh_embed.snapshot import Snapshot, SnapshotInfo, inspect, open, verify

__all__ = [
    "DamagedError",
    "HFHError",
    "InputError",
    "MissingDependencyError",
    "RatioError",
    "Snapshot",
    "SnapshotError",
    "SnapshotInfo",
    "SpecError",
    "Table",
    "TableNotFoundError",
    "UnknownIdError",
    "__version__",
    "inspect",
    "key_ids",
    "open",
    "verify",
]

try:
    __version__ = version("hfh-embed")
except PackageNotFoundError:  # used from a source tree without an installation
    __version__ = "0+unknown"
