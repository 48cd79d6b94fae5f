"""Encoding a whole table, chunk by chunk, into arrays that lie in memory or in files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hfh_embed.codec.stored import StoredFit
from hfh_embed.codec.survey import BLOCK_ROWS, Chunk, Runner, chunks_of
from hfh_embed.dense import Float32Rows
from hfh_embed.layout import Array, ArraySpec, table_arrays
from hfh_embed.spec import TableSpec

__all__ = ["Encoder", "Errors", "InMemory", "Store", "encode_table", "own_arrays"]

F64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Progress = Callable[[int, int, str], None]


class Errors(NamedTuple):
    """Squared errors and squared rows, summed: weighted, and all ids alike."""

    lost: float
    total: float
    plain_lost: float
    plain_total: float

    @property
    def relative(self) -> float:
        """The weighted relative error."""
        return self.lost / self.total if self.total else 0.0

    @property
    def plain(self) -> float:
        """The relative error of all ids alike."""
        return self.plain_lost / self.plain_total if self.plain_total else 0.0


class Store(Protocol):
    """Where the arrays of a table grow, and which chunks are already there."""

    arrays: dict[str, Array]

    def found(self, number: int) -> Errors | None:
        """The errors of a chunk that was encoded before."""

    def record(self, number: int, errors: Errors) -> None:
        """The arrays now hold this chunk."""


class InMemory:
    """Arrays in memory; nothing was encoded before."""

    def __init__(self, specs: dict[str, ArraySpec]) -> None:
        self.arrays: dict[str, Array] = {name: np.empty(spec.shape, spec.dtype) for name, spec in specs.items()}

    def found(self, number: int) -> Errors | None:
        return None

    def record(self, number: int, errors: Errors) -> None:
        pass


class _Encoded(NamedTuple):
    arrays: dict[str, Array]
    errors: Errors


@dataclass(frozen=True)
class Encoder:
    """Encode a chunk: the arrays of its rows, and what they lose."""

    fit: StoredFit
    rows: Float32Rows
    weights: F64 | None
    exact: Ids
    """Ascending."""

    def __call__(self, chunk: Chunk) -> _Encoded:
        blocks: dict[str, list[Array]] = {}
        sums = np.zeros(4)
        for start in range(chunk.start, chunk.stop, BLOCK_ROWS):
            part = slice(start, min(start + BLOCK_ROWS, chunk.stop))
            block = self.rows[part]
            arrays, decoded = self.fit.encode(block)
            if "trellis.codes" in arrays:
                arrays["trellis.codes"] = np.packbits(arrays["trellis.codes"].reshape(-1), bitorder="little")
            first, last = np.searchsorted(self.exact, (part.start, part.stop))
            if (exact := self.fit.table.exact) is not None:
                hot = self.exact[first:last] - start
                arrays["exact.values"], arrays["exact.scale"], decoded[hot] = self.fit.exact(block[hot], exact.bits)
            for key, array in arrays.items():
                blocks.setdefault(key, []).append(array)
            lost = ((block - decoded).astype(np.float64) ** 2).sum(axis=1)
            total = (block.astype(np.float64) ** 2).sum(axis=1)
            plain = (float(lost.sum()), float(total.sum()))
            weights = self.weights[part] if self.weights is not None else None
            weighted = plain if weights is None else (float(weights @ lost), float(weights @ total))
            sums += (*weighted, *plain)
        return _Encoded({key: np.concatenate(parts) for key, parts in blocks.items()}, Errors(*sums.tolist()))


def own_arrays(fit: StoredFit) -> dict[str, ArraySpec]:
    """The arrays that have an entry for each row or each exact row."""
    return {name: spec for name, spec in table_arrays(fit.table).items() if name not in fit.arrays}


def encode_table(encoder: Encoder, store: Store, run: Runner[Any], tell: Progress) -> Errors:
    """Fill the store's arrays with all rows but those that it already has; the errors of the whole table."""
    table = encoder.fit.table
    if table.exact is not None:
        store.arrays["exact.ids"][:] = encoder.exact
    count, done = table.num_embeddings, 0
    chunks, missing = chunks_of(count), []
    each = np.zeros((len(chunks), 4))
    for chunk in chunks:
        if (errors := store.found(chunk.number)) is None:
            missing.append(chunk)
        else:
            done += chunk.stop - chunk.start
            each[chunk.number] = errors
    for chunk, encoded in run(encoder, missing):
        for name, array in encoded.arrays.items():
            first = _first(table, name, chunk.start, encoder.exact)
            store.arrays[name][first : first + len(array)] = array
        store.record(chunk.number, encoded.errors)
        done += chunk.stop - chunk.start
        each[chunk.number] = encoded.errors
        tell(done, count, "encode")
    return Errors(*each.sum(axis=0).tolist())


def _first(table: TableSpec, name: str, row: int, exact: Ids) -> int:
    """Where the entries of rows from ``row`` on begin in an array."""
    if name.startswith("exact."):
        return int(np.searchsorted(exact, row))
    if name == "trellis.codes" and table.trellis is not None:
        return row * table.trellis.row_bits // 8
    return row
