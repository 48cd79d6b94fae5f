"""The linear part of the codec: principal axes of a table, and a map back to its entries stored in few bits."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from hfh_embed.layout import Array
from hfh_embed.packing import levels_from_codes, pack, round_to_codes
from hfh_embed.spec import MapBand

__all__ = ["Axes", "bands_for", "half_steps", "principal_axes", "quantise_map"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Axes:
    """Orthonormal axes (D, D) as rows, by falling variance (D,), around a centre (D,)."""

    axes: F64
    variance: F64
    centre: F64


def principal_axes(rows: npt.NDArray[np.floating], weights: F64, centred: bool) -> Axes:
    """The weighted principal axes of rows (n, D); about the origin where ``centred`` is false."""
    share = weights / weights.sum()
    centre = share @ rows if centred else np.zeros(rows.shape[1])
    moved = (rows - centre) * np.sqrt(share)[:, None]
    variance, vectors = np.linalg.eigh(moved.T @ moved)
    axes = vectors.T[::-1].copy()
    axes *= np.where(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)] < 0, -1, 1)[:, None]  # one of two signs
    return Axes(axes, np.maximum(variance[::-1], 0), centre)


def bands_for(bits: F64) -> tuple[MapBand, ...]:
    """Bands of a map whose rows want these numbers of bits, in order."""
    whole = np.clip(np.ceil(bits), 2, 8).astype(int).tolist()
    return tuple(MapBand(len(list(same)), value) for value, same in groupby(whole))


def quantise_map(matrix: F64, bands: tuple[MapBand, ...]) -> dict[str, Array]:
    """Store a map (R, D) in few-bit values with one scale a latent entry."""
    values, scales, first = [], [], 0
    for band in bands:
        rows = matrix[first : first + band.rows]
        half_step = half_steps(rows, band.bits)
        codes = round_to_codes(rows, half_step[:, None].astype(np.float64), band.bits)
        values.append(pack(codes, band.bits).reshape(-1))
        scales.append(half_step)
        first += band.rows
    return {"map.values": np.concatenate(values), "map.scale": np.concatenate(scales)}


def half_steps(values: npt.NDArray[np.floating], bits: int) -> F32:
    """For each row the half step with the least squared error among a few shares of the row's maximum; 0 for a row of zeros."""
    largest = np.abs(values).max(axis=1).astype(np.float64)
    zero = largest == 0
    largest[zero] = 1
    best = np.full(len(values), np.inf)
    chosen = np.zeros(len(values))
    for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3) if bits < 8 else (1.0, 0.9):
        half_step = (share * largest / (2**bits - 1)).astype(np.float32)
        half_step[half_step == 0] = np.finfo(np.float32).tiny
        levels = levels_from_codes(round_to_codes(values, half_step[:, None].astype(np.float64), bits), bits)
        error = ((values - levels * half_step[:, None].astype(np.float64)) ** 2).sum(axis=1)
        better = error < best
        best[better], chosen[better] = error[better], half_step[better]
    chosen[zero] = 0
    return chosen.astype(np.float32)
