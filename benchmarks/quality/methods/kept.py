"""Any method on the ids that training uses often enough; the rows of the others are zeros."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.methods.base import Embedding, Joined, Shapes, TooSmallError
from hfh_embed.budget import LEAST_USES
from hfh_embed.packing import pack

__all__ = ["Keeping", "keeping"]

Maker = Callable[[Shapes, float, int], Embedding]


class Keeping(Joined):
    """A method on the kept ids alone, with the bytes that a bit for each id leaves."""

    def __init__(self, shapes: Shapes, ratio: float, seed: int, make: Maker, least_uses: int) -> None:
        super().__init__(shapes)
        kept = {field: np.flatnonzero(uses >= least_uses) for field, uses in shapes.counts.items()}
        kept = {field: own if len(own) else np.zeros(1, np.int64) for field, own in kept.items()}
        counts = {field: shapes.counts[field][own] for field, own in kept.items()}
        few = Shapes({field: len(own) for field, own in kept.items()}, shapes.dim, counts, shapes.std)
        bits = np.zeros(shapes.total, dtype=np.uint8)
        bits[np.concatenate([own + self._starts[field] for field, own in kept.items()])] = 1
        self._index = pack(bits, 1)
        self._places = torch.from_numpy(np.where(bits, np.cumsum(bits, dtype=np.int64) - 1, -1))
        left = shapes.dense_nbytes / ratio - self._index.nbytes
        if left <= 0:
            raise TooSmallError(f"a bit for each of {shapes.total:,} ids takes all bytes")
        method = make(few, few.dense_nbytes / left, seed)
        assert isinstance(method, Joined)
        self.method, self.settles = method, method.settles

    def before_step(self, step: int, per_epoch: int) -> None:
        self.method.before_step(step, per_epoch)

    def after_backward(self) -> None:
        self.method.after_backward()

    def own_optimizer(self, rate: float) -> torch.optim.Optimizer | None:
        return self.method.own_optimizer(rate)

    def after_training(self) -> bool:
        return self.method.after_training()

    def rows(self, ids: Tensor) -> Tensor:
        places = self._places[ids]
        own = torch.nonzero(places >= 0).squeeze(1)
        rows = torch.zeros(len(ids), self.dim)
        return rows.index_copy(0, own, self.method.rows(places[own])) if len(own) else rows

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Stored bytes."""
        return self.method.nbytes + self._index.nbytes


def keeping(make: Maker, least_uses: int = LEAST_USES) -> Maker:
    """The same method on the ids that are used so often."""

    def made(shapes: Shapes, ratio: float, seed: int) -> Embedding:
        return Keeping(shapes, ratio, seed, make, least_uses)

    return made
