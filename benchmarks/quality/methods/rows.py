"""Rows of their own for every id: the full table, few-bit rows trained with rounding, and few-bit coefficients through one map."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.quality.methods.base import Arrays, Joined, Shapes, TooSmallError, floats
from hfh_embed.nn.rounding import STEPS, levels
from hfh_embed.packing import pack

__all__ = ["FewBit", "FewBitRows", "Full", "Mapped"]

HALF_STEPS = {bits: step / 2 for bits, step in STEPS.items()} | {3: 0.5860 / 2}
"""Half the distance between levels in units of the rms, as the library has it; 3 bits from the same source (Max, 1960)."""


class Full(Joined):
    """The uncompressed table."""

    def __init__(self, shapes: Shapes, ratio: float, seed: int) -> None:
        super().__init__(shapes)
        self.values = nn.Parameter(torch.randn(shapes.total, shapes.dim) * shapes.std)

    def rows(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.values)

    def arrays(self) -> Arrays:
        return floats(values=self.values)


class FewBit(nn.Module):
    """(rows, count) values of 1, 2, 3, 4 or 8 bits with one learned scale; float32 masters, rounded in the forward pass."""

    def __init__(self, rows: int, count: int, bits: int, std: float) -> None:
        super().__init__()
        self.bits = bits
        self.masters = nn.Parameter(torch.randn(rows, count) * std)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, ids: Tensor) -> Tensor:
        half_step = self._half_step()
        return levels(nn.functional.embedding(ids, self.masters), half_step, self.bits) * half_step * self.scale

    def _half_step(self) -> Tensor:
        return (self.masters.detach().square().mean().sqrt() * HALF_STEPS[self.bits]).clamp_min(1e-12)

    @torch.no_grad()
    def arrays(self) -> Arrays:
        half_step = self._half_step()
        codes = (levels(self.masters, half_step, self.bits) + (2**self.bits - 1)) / 2
        packed = pack(codes.to(torch.int32).numpy().reshape(1, -1), self.bits)  # rows need not start on a byte
        return {"codes": packed, "scale": (half_step * self.scale).numpy().astype(np.float32)}


class FewBitRows(Joined):
    """Quantised rows: as many bits an entry as the ratio allows, trained with rounding."""

    def __init__(self, shapes: Shapes, ratio: float, seed: int) -> None:
        super().__init__(shapes)
        fits = [bits for bits in HALF_STEPS if -(-shapes.total * shapes.dim * bits // 8) + 4 <= _room(shapes, ratio)]
        if not fits:
            raise TooSmallError("a bit for each entry is too much")
        self.values = FewBit(shapes.total, shapes.dim, max(fits), shapes.std)

    def rows(self, ids: Tensor) -> Tensor:
        return self.values(ids)

    def arrays(self) -> Arrays:
        return self.values.arrays()


class Mapped(Joined):
    """R coefficients of ``bits`` bits for each id, and an R -> D map with a bias that all ids share."""

    def __init__(self, shapes: Shapes, ratio: float, seed: int, bits: int) -> None:
        super().__init__(shapes)
        left = shapes.budget(ratio) - 4 - 4 * shapes.dim
        per_entry = shapes.total * bits / 8 + 4 * shapes.dim
        latent = int(left / per_entry)
        if latent < 1:
            raise TooSmallError(f"a coefficient of {bits} bits for each id is too much")
        if latent > shapes.dim:
            raise TooSmallError(f"{bits} bits for every entry fit without a map")
        self.values = FewBit(shapes.total, latent, bits, 1.0)
        self.map = nn.Parameter(torch.randn(latent, shapes.dim) * (shapes.std / math.sqrt(latent)))
        self.bias = nn.Parameter(torch.zeros(shapes.dim))

    def rows(self, ids: Tensor) -> Tensor:
        return self.values(ids) @ self.map + self.bias

    def arrays(self) -> Arrays:
        return self.values.arrays() | floats(map=self.map, bias=self.bias)


def _room(shapes: Shapes, ratio: float) -> int:
    """The budget; a table's one scale may exceed the ratios that bits alone would meet exactly (8, 16, 32)."""
    return shapes.budget(ratio) + 4
