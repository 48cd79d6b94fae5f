"""Which latent entries get how many bits: bits go where the variance is.

For a Gaussian source the least error at a given number of bits is had by reverse water-filling (Cover and Thomas,
"Elements of Information Theory", section 10.3.3): entry d gets half the logarithm of its variance over a water level.
A trellis has few rates, so entries take the rate whose error and bits cost least together at one price of a bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hfh_embed.spec import StepRun

__all__ = ["error_bound", "left_over", "runs_for", "water_filling"]

F64 = npt.NDArray[np.float64]

RATES = ((0, 1), (1, 4), (1, 2), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1))
"""Bits and entries of a step, by rising rate; the first is an entry that is left out."""

LEFT = (1.0, 0.74, 0.535, 0.29, 0.082, 0.0225, 0.0062, 0.0018, 0.00052, 0.00016, 0.00005)
"""What each rate leaves of an entry's variance: measured with Gaussian numbers and 256 states."""


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


def error_bound(variance: F64, bits: float) -> float:
    """The rate-distortion bound: the squared error that Gaussian rows of these variances keep at ``bits`` bits a row."""
    if not variance.max() > 0:
        return 0.0
    return float((variance * 4.0 ** -water_filling(variance, bits)).sum())


def left_over(run: StepRun) -> float:
    """The share of an entry's variance that remains as error."""
    return LEFT[RATES.index((run.bits, run.entries))]


def runs_for(variance: F64, bits: int, power: float) -> tuple[StepRun, ...]:
    """Runs of steps over the first entries, with exactly ``bits`` bits in all, or as many as the rates can spend.

    Args:
        variance: (D,) falling.
        bits: of one row's ring.
        power: above 1, leading entries get more than the least error asks for, which keeps neighbours in order.
    """
    value = (np.maximum(variance, 0) / max(float(variance.max()), 1e-300)) ** power
    rate = np.array([step_bits / entries for step_bits, entries in RATES])
    left = np.array(LEFT)

    def chosen(price: float) -> npt.NDArray[np.int64]:
        cheapest = (value[:, None] * left + price * rate).argmin(axis=1)
        return np.minimum.accumulate(cheapest)

    low, high = 1e-14, 10.0
    for _ in range(60):
        price = (low * high) ** 0.5
        if rate[chosen(price)].sum() > bits:
            low = price
        else:
            high = price
    counts = np.bincount(chosen(high), minlength=len(RATES))
    for number in range(len(RATES) - 1, 0, -1):  # whole steps only
        odd = counts[number] % RATES[number][1]
        counts[number] -= odd
        counts[number - 1] += odd
    _spend(counts, bits, value, rate, left)
    return tuple(
        StepRun(int(counts[number]) // RATES[number][1], RATES[number][1], RATES[number][0])
        for number in range(len(RATES) - 1, 0, -1)
        if counts[number]
    )


def _spend(counts: npt.NDArray[np.int64], bits: int, value: F64, rate: F64, left: F64) -> None:
    """Raise the rates of entries until no bit is left over, each time where it helps most."""
    spare = bits - round(float(counts @ rate))
    while spare > 0:
        best: tuple[int, int, int, int] | None = None
        for reach in range(1, len(RATES)):  # by one rate, or in short rows, where no whole step fits, by more
            gain = 0.0
            for number in range(len(RATES) - reach):
                higher = number + reach
                some = max(RATES[number][1], RATES[higher][1])
                cost = some * (rate[higher] - rate[number])
                if counts[number] < some or cost > spare or cost != int(cost):
                    continue
                first = int(counts[number + 1 :].sum())
                saved = value[first : first + some].sum() * (left[number] - left[higher]) / cost
                if best is None or saved > gain:
                    best, gain = (number, higher, some, int(cost)), saved
            if best is not None:
                break
        if best is None:
            return
        number, higher, some, paid = best
        counts[number] -= some
        counts[higher] += some
        spare -= paid
