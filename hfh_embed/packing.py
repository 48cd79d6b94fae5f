"""Few-bit values as bytes, and back.

A ``b``-bit value is a code ``c`` in [0, 2**b) that stands for the odd integer *level* ``2c - (2**b - 1)``: one bit is
-1 or +1, two bits are -3, -1, +1, +3. Levels are symmetric, never zero, and their sums are exact in float32. Value ``j``
of a row occupies bits ``j*b ... j*b + b - 1`` of the row's bytes, lowest bit first; every row starts on a byte.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["levels_from_codes", "pack", "packed_bytes", "round_to_codes", "unpack"]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` packed values."""
    return -(-count * bits // 8)


def pack(codes: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.uint8]:
    """Codes (..., K) in [0, 2**bits) as bytes (..., ceil(K * bits / 8)), 1 <= bits <= 16."""
    planes = (codes[..., None].astype(np.uint16) >> np.arange(bits, dtype=np.uint16)) & np.uint16(1)
    flat = planes.astype(np.uint8).reshape(*codes.shape[:-1], codes.shape[-1] * bits)
    return np.packbits(flat, axis=-1, bitorder="little")


def unpack(packed: npt.NDArray[np.uint8], count: int, bits: int) -> npt.NDArray[np.uint16]:
    """Bytes (..., ceil(count * bits / 8)) as codes (..., count)."""
    flat = np.unpackbits(packed, axis=-1, count=count * bits, bitorder="little")
    planes = flat.reshape(*packed.shape[:-1], count, bits).astype(np.uint16)
    weights = np.uint16(1) << np.arange(bits, dtype=np.uint16)
    codes: npt.NDArray[np.uint16] = (planes * weights).sum(axis=-1, dtype=np.uint16)
    return codes


def levels_from_codes(codes: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.int32]:
    """Codes as their odd integer levels, same shape."""
    return 2 * codes.astype(np.int32) - np.int32(2**bits - 1)


def round_to_codes(
    values: npt.NDArray[np.floating], half_step: npt.NDArray[np.floating] | float, bits: int
) -> npt.NDArray[np.uint16]:
    """The code whose level times ``half_step`` is nearest to each value; values beyond the last level take it."""
    half = 2 ** (bits - 1)
    cells = np.floor(values / np.maximum(2 * half_step, 1e-300))  # a scale of zero stands for zeros, whatever the code
    codes: npt.NDArray[np.uint16] = (np.clip(cells, -half, half - 1) + half).astype(np.uint16)
    return codes
