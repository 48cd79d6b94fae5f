"""Where the windows of a trellis lie in a row's ring of bits: the same places for numpy, torch and compiled code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hfh_embed.spec import TrellisSpec

__all__ = ["Windows", "windows_of"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """For each latent entry of the steps (E,): its step, its codebook, and the first bit of its window within the ring."""

    step: I64
    book: I64
    place: I64

    def states(self, codes: npt.NDArray[np.uint8], ids: I64, trellis: TrellisSpec) -> I64:
        """The state behind every entry, (B, E), from the packed codes."""
        first = ids[:, None] * trellis.row_bits + trellis.norm_bits
        low = read_bits(codes, first + self.place, trellis.state_bits)
        until = trellis.ring_bits - self.place  # a window that passes the ring's end goes on at its beginning
        over = until < trellis.state_bits
        if over.any():
            high = read_bits(codes, first, trellis.state_bits)
            low[:, over] = (low[:, over] & ((1 << until[over]) - 1)) | (high << until[over])
        states: I64 = low & ((1 << trellis.state_bits) - 1)
        return states

    def norms(self, codes: npt.NDArray[np.uint8], ids: I64, trellis: TrellisSpec) -> I64:
        """The code of each id's factor, (B,)."""
        return read_bits(codes, ids * trellis.row_bits, trellis.norm_bits)


def windows_of(trellis: TrellisSpec) -> Windows:
    """The windows of a trellis' entries, in their order."""
    step: list[int] = []
    book: list[int] = []
    place: list[int] = []
    number, first_book, end = 0, 0, trellis.ring_bits
    for run in trellis.runs:
        for _ in range(run.steps):
            end -= run.bits
            step += [number] * run.entries
            book += range(first_book, first_book + run.entries)
            place += [end] * run.entries
            number += 1
        first_book += run.entries
    return Windows(np.array(step), np.array(book), np.array(place))


def read_bits(codes: npt.NDArray[np.uint8], places: I64, count: int) -> I64:
    """``count`` <= 16 bits from each place of a bit string, lowest first; bits past its end are zero."""
    last = len(codes) - 1
    byte = places >> 3
    word = codes[byte].astype(np.int64)
    for more in (1, 2):
        word |= codes[np.minimum(byte + more, last)].astype(np.int64) << (8 * more)
    bits: I64 = (word >> (places & 7)) & ((1 << count) - 1)
    return bits
