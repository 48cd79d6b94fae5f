"""The error tree. Every message says what was given, what is allowed and what to do.

HFHError
├── SpecError (ValueError)          a pool or table description that cannot be
│   └── RatioError                  a ratio that cannot be met; carries the nearest one that can
├── InputError (ValueError)         data given to a function or command is unusable
│   └── UnknownIdError (IndexError) an id outside the table, or a key it does not know
├── SnapshotError (ValueError)      a file that is not a readable snapshot
│   └── DamagedError                a snapshot whose bytes do not match their checksums
├── TableNotFoundError (KeyError)   a table name that a snapshot or model does not have
└── MissingDependencyError (ImportError)  an optional package is not installed
"""

from __future__ import annotations

import math

__all__ = [
    "DamagedError",
    "HFHError",
    "InputError",
    "MissingDependencyError",
    "RatioError",
    "SnapshotError",
    "SpecError",
    "TableNotFoundError",
    "UnknownIdError",
    "nearest_ratio",
]


class HFHError(Exception):
    """Base of every error that this package raises on purpose."""


class SpecError(HFHError, ValueError):
    """A pool or table description is impossible."""


class RatioError(SpecError):
    """A ratio cannot be met.

    ``nearest`` is the closest ratio that can, so that a caller may retry with it.
    """

    def __init__(self, message: str, nearest: float) -> None:
        super().__init__(message)
        self.nearest = nearest


def nearest_ratio(dense: int, nbytes: float) -> float:
    """The largest ratio of four digits that leaves so many of the dense bytes, at least 1."""
    nearest = math.floor(dense / nbytes * 1e4) / 1e4
    if nearest > 1 and int(dense / nearest) < nbytes:  # 132 bytes at 8.8 are 14.99...
        nearest = round(nearest - 1e-4, 4)
    return max(nearest, 1.0)


class InputError(HFHError, ValueError):
    """Data given to a function or a command is unusable."""


class UnknownIdError(InputError, IndexError):
    """An id lies outside its table, or a key is not in its vocabulary."""


class SnapshotError(HFHError, ValueError):
    """A file is not a readable snapshot."""


class DamagedError(SnapshotError):
    """A snapshot's bytes do not match their checksums."""


class TableNotFoundError(HFHError, KeyError):
    """No table has the given name."""

    def __str__(self) -> str:  # KeyError would show the repr, with quotes around the sentence
        return str(self.args[0])


class MissingDependencyError(HFHError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""
