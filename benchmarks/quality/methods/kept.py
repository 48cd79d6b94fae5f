"""Any method on the ids that training uses often enough; the rows of the others are zeros."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.methods.base import Embedding, Shapes, TooSmallError
from hfh_embed.budget import LEAST_USES

__all__ = ["Keeping", "keeping"]

Maker = Callable[[Shapes, float, int], Embedding]


class Keeping(Embedding):
    """A method on the kept ids alone, with the bytes that a bit for each id leaves."""

    def __init__(self, shapes: Shapes, ratio: float, seed: int, make: Maker, least_uses: int) -> None:
        super().__init__()
        kept = {field: uses >= least_uses for field, uses in shapes.counts.items()}
        counts = {
            field: shapes.counts[field][own] if own.any() else np.zeros(1, np.int64) for field, own in kept.items()
        }
        few = Shapes({field: len(uses) for field, uses in counts.items()}, shapes.dim, counts, shapes.std)
        self._index_nbytes = sum(-(-n // 8) for n in shapes.sizes.values())
        left = shapes.dense_nbytes / ratio - self._index_nbytes
        if left <= 0:
            raise TooSmallError(f"a bit for each of {shapes.total:,} ids takes all bytes")
        self._places = {field: torch.from_numpy(np.where(own, np.cumsum(own) - 1, -1)) for field, own in kept.items()}
        self.method = make(few, few.dense_nbytes / left, seed)
        self.settles = self.method.settles
        self.before_step = self.method.before_step
        self.after_backward = self.method.after_backward
        self.own_optimizer = self.method.own_optimizer
        self.after_training = self.method.after_training

    def forward(self, fields: tuple[str, ...], ids: Tensor) -> Tensor:
        places = torch.stack([self._places[field][ids[:, at]] for at, field in enumerate(fields)], dim=1)
        return self.method(fields, places.clamp_min(0)).masked_fill((places < 0)[..., None], 0)

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Stored bytes."""
        return self.method.nbytes + self._index_nbytes


def keeping(make: Maker, least_uses: int = LEAST_USES) -> Maker:
    """The same method on the ids that are used so often."""

    def made(shapes: Shapes, ratio: float, seed: int) -> Embedding:
        return Keeping(shapes, ratio, seed, make, least_uses)

    return made
