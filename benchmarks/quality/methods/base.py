"""What every method is asked for and gives: rows for (field, id) within a number of bytes.

Methods see one long table: the ids of all fields after one another. For hashing methods that equals a table for each field on
one store; for maps and networks it means that the fields share them, which is cheaper and was never worse here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["SGD_RATES", "Embedding", "Joined", "Shapes", "TooSmallError", "descending", "floats", "hashed"]

Arrays = dict[str, npt.NDArray[Any]]

SGD_RATES = 1e4
"""What plain gradient descent's rates are in units of Adam's, so that one list of rates does for both."""


class TooSmallError(ValueError):
    """The method has no form of so few bytes."""


@dataclass(frozen=True)
class Shapes:
    """The tables of a data set: ids of each field, entries of a row, how often training uses each id, and initial spread."""

    sizes: Mapping[str, int]
    dim: int
    counts: Mapping[str, npt.NDArray[np.int64]]
    std: float

    @cached_property
    def total(self) -> int:
        """Ids of all fields."""
        return sum(self.sizes.values())

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the full float32 tables."""
        return 4 * self.dim * self.total

    def budget(self, ratio: float) -> int:
        """Bytes at a ratio."""
        return int(self.dense_nbytes / ratio)

    @cached_property
    def joined_counts(self) -> npt.NDArray[np.int64]:
        """How often each id of the long table is used."""
        return np.concatenate([self.counts[field] for field in self.sizes])


class Embedding(nn.Module):
    """Rows of ids, (B, F) ids of F named fields to (B, F, D)."""

    nbytes: int
    """Stored bytes of a served model, all that rows are computed from."""
    settles: int = 0
    """Epochs until the method has its final size; what comes before them does not count."""

    def forward(self, fields: tuple[str, ...], ids: Tensor) -> Tensor:
        raise NotImplementedError

    def before_step(self, step: int, per_epoch: int) -> None:
        """Called before each step of training, for methods that change their form; ``step`` counts from 0."""

    def after_backward(self) -> None:
        """Called when gradients are there, before the optimizer's step."""

    def own_optimizer(self, rate: float) -> torch.optim.Optimizer | None:
        """The optimizer of all the method's parameters where it is not Adam."""
        return None

    def after_training(self) -> bool:
        """Called when training has ended; whether rows are others now."""
        return False


class Joined(Embedding):
    """A method on the long table: :meth:`rows` of distinct ids, and :meth:`arrays`, which is what would be stored."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.total, self.dim, self.std = shapes.total, shapes.dim, shapes.std
        starts = np.cumsum([0, *shapes.sizes.values()])[:-1]
        self._starts = dict(zip(shapes.sizes, starts.tolist(), strict=True))
        self._offsets: dict[tuple[str, ...], Tensor] = {}

    def forward(self, fields: tuple[str, ...], ids: Tensor) -> Tensor:
        if fields not in self._offsets:
            self._offsets[fields] = torch.tensor([self._starts[field] for field in fields])
        distinct, inverse = torch.unique(ids + self._offsets[fields], return_inverse=True)
        return nn.functional.embedding(inverse, self.rows(distinct))

    def rows(self, ids: Tensor) -> Tensor:
        """Rows (n, D) of distinct ids (n,)."""
        raise NotImplementedError

    def arrays(self) -> Arrays:
        """Everything that a served model stores, in the types that it is stored in."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Stored bytes."""
        return sum(array.nbytes for array in self.arrays().values())


def descending(make: Callable[[Shapes, float, int], Embedding]) -> Callable[[Shapes, float, int], Embedding]:
    """The same method, trained by plain gradient descent."""

    def made(shapes: Shapes, ratio: float, seed: int) -> Embedding:
        embed = make(shapes, ratio, seed)
        sgd = partial(torch.optim.SGD, list(embed.parameters()))
        setattr(embed, "own_optimizer", lambda rate: sgd(lr=SGD_RATES * rate))  # noqa: B010, the types allow no other way
        return embed

    return made


def floats(**parameters: Tensor) -> Arrays:
    """Parameters as the float32 arrays that are stored."""
    return {name: value.detach().numpy().astype(np.float32) for name, value in parameters.items()}


def hashed(total: int, buckets: int, seed: int) -> Tensor:
    """A random bucket for each id, as a hash function would give it: (total,) int64. Computed, so not stored."""
    generator = np.random.default_rng((seed, buckets))
    return torch.from_numpy(generator.integers(buckets, size=total))
