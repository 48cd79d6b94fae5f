"""Fitting a trellis' books to latent rows, finding the ring of bits of each row, and packing the rings.

Marcellin and Fischer, "Trellis coded quantization of memoryless and Gauss-Markov sources", IEEE Trans. Communications 1990;
a state that is a window of a ring of bits: Tseng et al., "QTIP", NeurIPS 2024. The books begin as shuffled quantiles of a Gaussian
and move to the means of what is assigned to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from hfh_embed.codec.allocation import left_over
from hfh_embed.kernels import native_chosen
from hfh_embed.layout import Array
from hfh_embed.spec import TrellisSpec
from hfh_embed.windows import windows_of

__all__ = ["FARTHEST", "LARGEST", "Books", "encode_rings", "fit_books", "pack_rings", "ring_work"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
States = npt.NDArray[np.uint16]
LARGEST = {8: 127, 16: 32767}
FARTHEST = 6.0
"""Deviations to the farthest value. All books share the unit that follows, so that stages can be stored in it."""

WHOLE_RING_BITS = 10
"""The compiled search tries all rings that are so short; the one here, all states at the seam."""

PRIOR = 1.0
"""Rows' worth of weight that a value's first place keeps."""


@dataclass(frozen=True)
class Books:
    """Values (books, 2**state_bits) as stored integers; an entry of unit variance is ``unit`` times such an integer."""

    spec: TrellisSpec
    values: Array
    unit: float

    def decode(self, states: States) -> F32:
        """Latent entries (n, entries) in their integers, from the states after each step (n, steps)."""
        windows = windows_of(self.spec)
        return self.values[windows.book, states[:, windows.step]].astype(np.float32)


def fit_books(
    latent: F32,
    weights: F64,
    spec: TrellisSpec,
    importance: F64,
    rounds: int,
    seed: int,
    threads: int,
    tell: Callable[[int, int, str], None],
) -> Books:
    """Fit books to latent rows (n, entries) of unit variance; errors of entry e weigh ``importance[e]``."""
    windows = windows_of(spec)
    values = _first_values(spec, seed)
    size = 1 << spec.state_bits
    for turn in range(rounds):
        states = encode_rings(latent, spec, values, importance, threads)
        place = (states[:, windows.step] + windows.book * size).reshape(-1)
        mass = np.bincount(place, np.repeat(weights, spec.entries), values.size)
        moment = np.bincount(place, (latent * weights[:, None]).reshape(-1), values.size)
        values = ((moment + PRIOR * values.reshape(-1)) / (mass + PRIOR)).reshape(values.shape)
        tell(turn + 1, rounds, "fit codes")
    largest = LARGEST[spec.value_bits]
    unit = FARTHEST / largest
    dtype = np.int8 if spec.value_bits == 8 else np.int16
    return Books(spec, np.round(values / unit).clip(-largest, largest).astype(dtype), unit)


def _first_values(spec: TrellisSpec, seed: int) -> F64:
    size = 1 << spec.state_bits
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((number + 0.5) / size) for number in range(size)])
    generator = np.random.default_rng(seed)
    spread = np.repeat([(1 - left_over(run)) ** 0.5 for run in spec.runs], [run.entries for run in spec.runs])
    return np.stack([generator.permutation(quantiles) * width for width in spread])


def encode_rings(latent: F32, spec: TrellisSpec, values: Array, importance: F64, threads: int) -> States:
    """The state after each step (n, steps) of the ring that describes each row best."""
    weight = np.ascontiguousarray(importance, dtype=np.float32)
    rows = np.ascontiguousarray(latent, dtype=np.float32)
    if not native_chosen():
        return _encode_numpy(rows, spec, np.asarray(values, dtype=np.float32), weight)
    from hfh_embed.kernels.native_coded import trellis_of

    states = np.empty((len(rows), sum(run.steps for run in spec.runs)), dtype=np.uint16)
    plain = np.ascontiguousarray(values, dtype=np.float32)
    trellis_of(spec, plain, None).encode(rows, weight, states, threads)
    return states


def seams(spec: TrellisSpec) -> int:
    """How many states at the seam are tried: more where the ring is too short to forget where it began."""
    states, turns = 1 << spec.state_bits, spec.ring_bits / spec.state_bits
    return states if spec.ring_bits <= WHOLE_RING_BITS else min(states, 64 if turns < 2 else 16 if turns < 4 else 1)


def ring_work(spec: TrellisSpec) -> float:
    """About how long the compiled search for a ring takes, in steps of one entry and state; a step itself takes as long as three."""
    if spec.ring_bits <= WHOLE_RING_BITS:
        return (1 << spec.ring_bits) * spec.entries
    overlap = min(4 * spec.state_bits / spec.ring_bits, 2)
    passes = max(seams(spec) / 4, 1)  # a quarter of the states that are tried at a seam differ
    return (1 << spec.state_bits) * (3 * sum(run.steps for run in spec.runs) + spec.entries) * (overlap + passes)


def _encode_numpy(rows: F32, spec: TrellisSpec, values: F32, weight: F32) -> States:
    """As the compiled search: a pass over the seam, then one that begins and ends in the seam's state."""
    bits = np.repeat([run.bits for run in spec.runs], [run.steps for run in spec.runs])
    first = np.concatenate(([0], np.cumsum(np.repeat([r.entries for r in spec.runs], [r.steps for r in spec.runs]))))
    book = windows_of(spec).book
    count, steps, size = len(rows), len(bits), 1 << spec.state_bits
    every = np.arange(count)

    def step(t: int, cost: F32) -> tuple[F32, States]:
        grouped = cost.reshape(count, 1 << bits[t], -1)
        head = grouped.argmin(axis=1).astype(np.uint16)
        cost = np.repeat(np.take_along_axis(grouped, head[:, None], axis=1)[:, 0], 1 << bits[t], axis=1)
        for entry in range(first[t], first[t + 1]):
            named = values[book[entry]]
            cost = cost + weight[entry] * (named**2 - 2 * rows[:, entry, None] * named)
        return cost.astype(np.float32), head

    def previous(t: int, state: npt.NDArray[np.int64], head: States) -> npt.NDArray[np.int64]:
        group = state >> bits[t]
        return (head[every, group].astype(np.int64) << (spec.state_bits - bits[t])) | group

    seam = min(int(np.searchsorted(np.cumsum(bits), 2 * spec.state_bits)) + 1, steps)
    tail = steps - min(int(np.searchsorted(np.cumsum(bits[::-1]), 2 * spec.state_bits)) + 1, steps)
    cost, heads = np.zeros((count, size), dtype=np.float32), []
    for t in range(tail, steps):
        cost, _ = step(t, cost)
    for t in range(seam):
        cost, head = step(t, cost)
        heads.append(head)
    tries = seams(spec)
    ends = cost.reshape(count, -1, tries).argmin(axis=1) * tries + np.arange(tries)
    best = np.full(count, np.inf, dtype=np.float32)
    path = np.zeros((count, steps), dtype=np.uint16)
    for state in ends.T:
        for t in range(seam - 1, -1, -1) if ends.shape[1] < size else ():
            state = previous(t, state, heads[t])
        cost, tried = np.full((count, size), 1e30, dtype=np.float32), []
        cost[every, state] = 0
        for t in range(steps):
            cost, head = step(t, cost)
            tried.append(head)
        better = cost[every, state] < best
        best[better] = cost[every, state][better]
        for t in range(steps - 1, -1, -1):
            path[better, t] = state[better]
            state = previous(t, state, tried[t])
    return path


def pack_rings(states: States, norms: npt.NDArray[np.uint8] | None, spec: TrellisSpec) -> npt.NDArray[np.uint8]:
    """Rings as bits (n, row_bits), each 0 or 1: the factor's code, then the ring."""
    bits = np.empty((len(states), spec.row_bits), dtype=np.uint8)
    if norms is not None:
        for bit in range(spec.norm_bits):
            bits[:, bit] = (norms >> bit) & 1
    step, end = 0, spec.row_bits
    for run in spec.runs:
        for _ in range(run.steps):
            end -= run.bits
            for bit in range(run.bits):
                bits[:, end + bit] = (states[:, step] >> bit) & 1
            step += 1
    return bits
