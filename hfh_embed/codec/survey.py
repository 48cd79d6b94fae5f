"""Reading a dense table that may be larger than memory: in chunks, each checked once, a sample on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from hfh_embed.dense import Float32Rows
from hfh_embed.errors import InputError

__all__ = ["BLOCK_ROWS", "Chunk", "Runner", "Survey", "chunks_of", "in_turn", "survey"]

F32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Progress = Callable[[int, int, str], None]
T = TypeVar("T")

BLOCK_ROWS = 16_384
CHUNK_ROWS = 4 * BLOCK_ROWS
"""What is encoded, recorded or sent to another machine at once. A multiple of eight rows, so that bits end on a byte."""

LISTED = 5


class Chunk(NamedTuple):
    """Rows ``start`` to ``stop``, the chunk of this number."""

    number: int
    start: int
    stop: int


Runner = Callable[[Callable[[Chunk], T], Sequence[Chunk]], Iterator[tuple[Chunk, T]]]
"""Does something with every chunk: in this process, or on many machines."""


def chunks_of(count: int) -> list[Chunk]:
    """The chunks of ``count`` rows."""
    starts = range(0, count, CHUNK_ROWS)
    return [Chunk(number, start, min(start + CHUNK_ROWS, count)) for number, start in enumerate(starts)]


def in_turn(do: Callable[[Chunk], T], chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, T]]:
    """One chunk after the other, in this process."""
    for chunk in chunks:
        yield chunk, do(chunk)


class _Seen(NamedTuple):
    wrong: Ids
    zeros: Ids
    sample: F32


@dataclass(frozen=True)
class Survey:
    """Look at a chunk: which of its rows are not finite, which are zeros, and those that are wanted for the sample."""

    rows: Float32Rows
    picked: Ids
    """Ascending."""

    def __call__(self, chunk: Chunk) -> _Seen:
        wrong, zeros, sample = [], [], []
        for start in range(chunk.start, chunk.stop, BLOCK_ROWS):
            block = self.rows[start : min(start + BLOCK_ROWS, chunk.stop)]
            wrong.append(start + np.flatnonzero(~np.isfinite(block).all(axis=1)))
            zeros.append(start + np.flatnonzero(~block.any(axis=1)))
            first, last = np.searchsorted(self.picked, (start, start + len(block)))
            sample.append(block[self.picked[first:last] - start])
        return _Seen(np.concatenate(wrong), np.concatenate(zeros), np.concatenate(sample))


def survey(rows: Float32Rows, picked: Ids, run: Runner[Any], tell: Progress) -> tuple[F32, Ids]:
    """The rows of ascending ids ``picked``, and the ids whose rows are zeros, ascending; InputError lists rows that are not finite."""
    chunks, done = chunks_of(rows.shape[0]), 0
    zeros: list[Ids] = [np.empty(0, dtype=np.int64)] * len(chunks)
    sample: list[F32] = [np.empty((0, rows.shape[1]), dtype=np.float32)] * len(chunks)
    for chunk, seen in run(Survey(rows, picked), chunks):
        if len(seen.wrong):
            listed = ", ".join(map(str, seen.wrong[:LISTED]))
            raise InputError(
                f"rows {listed}{' and more' if len(seen.wrong) > LISTED else ''} hold NaN or infinite values; "
                "remove or mend them, or make them zero (nan='zero', --nan zero)"
            )
        sample[chunk.number] = seen.sample
        zeros[chunk.number] = seen.zeros
        done += chunk.stop - chunk.start
        tell(done, rows.shape[0], "check")
    return np.concatenate(sample), np.concatenate(zeros)
