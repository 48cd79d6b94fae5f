"""Which latent entries share a code, and how many bits the code has: bits go where the variance is.

For a Gaussian source the least error at a given number of bits is had by reverse water-filling (Cover and Thomas,
"Elements of Information Theory", section 10.3.3): entry d gets half the logarithm of its variance over a water level.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hfh_embed.spec import CodeChunk

__all__ = ["MAX_CODE_BITS", "chunks_for", "water_filling"]

F64 = npt.NDArray[np.float64]
MAX_CODE_BITS = 8
MAX_CHUNK = 16


def water_filling(variance: F64, bits: float) -> F64:
    """Bits of each entry (D,), ``bits`` in all, none negative."""
    order = np.argsort(-variance, kind="stable")
    logs = 0.5 * np.log2(np.maximum(variance[order], variance.max() * 1e-12 + 1e-300))
    counts = np.arange(1, len(logs) + 1)
    levels = (np.cumsum(logs) - bits) / counts
    used = int(np.flatnonzero(logs > levels)[-1]) + 1
    given = np.zeros(len(logs))
    given[order[:used]] = np.maximum(logs[:used] - levels[used - 1], 0)
    return given


def chunks_for(variance: F64, bits: int, power: float, code_bits: int = MAX_CODE_BITS) -> tuple[CodeChunk, ...]:
    """Chunks of neighbouring entries with ``bits`` in all a row, each code near ``code_bits``.

    Args:
        variance: (D,) falling.
        bits: of one row's codes together.
        power: above 1, leading entries get more than the least error asks for, which keeps neighbours in order.
        code_bits: at most this many bits a code.
    """
    given = water_filling(variance**power, bits)
    spans: list[tuple[int, int, float]] = []
    start, total = 0, 0.0
    for entry, wanted in enumerate(given):
        full = entry > start and (total + min(wanted, code_bits) > code_bits + 1e-9 or entry - start >= MAX_CHUNK)
        if full:
            spans.append((start, entry - start, total))
            start, total = entry, 0.0
        total += min(wanted, code_bits)
    used = int(np.count_nonzero(given))
    if start < used:
        spans.append((start, used - start, total))
    if not spans:
        return ()
    wanted = np.array([span[2] for span in spans])
    whole = np.clip(np.round(wanted), 1, code_bits).astype(int)
    gain = variance[[span[0] for span in spans]]
    while whole.sum() != bits:  # hand out or take back what rounding moved, where it matters most or least
        if whole.sum() < bits:
            able = whole < code_bits
            if not able.any():
                break
            whole[np.argmax(np.where(able, (wanted - whole) + 1e-9 * gain / gain.max(), -np.inf))] += 1
        else:
            able = whole > 1
            if not able.any():
                whole[-1] = 0
                spans, wanted, gain, whole = spans[:-1], wanted[:-1], gain[:-1], whole[:-1]
                continue
            whole[np.argmin(np.where(able, wanted - whole, np.inf))] -= 1
    return tuple(CodeChunk(start, size, int(b)) for (start, size, _), b in zip(spans, whole, strict=True))
