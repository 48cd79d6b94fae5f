"""Two extensions that the paper names, and HFH beside single pruned coefficients.

The paper gives no formulas for its dual space and its multiple hops; these are our reading of both, in float32 values and chunks of eight
entries, to be compared with "free, U = 4, 32 bits".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.quality.methods.base import Arrays, Embedding, Joined, Shapes, TooSmallError, floats

__all__ = ["Beside", "DualSpace", "MultiHop"]

CHUNK, FETCHES = 8, 4
MIXERS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)


class _Values(Joined):
    """One store of float32 values from which chunks are fetched at hashed places."""

    def __init__(self, shapes: Shapes, ratio: float, seed: int, stores: int) -> None:
        super().__init__(shapes)
        self.slots = shapes.budget(ratio) // 4 // stores
        if self.slots < CHUNK:
            raise TooSmallError("not one chunk")
        self.chunks, self.seed = -(-shapes.dim // CHUNK), seed

    def _store(self, std: float) -> nn.Parameter:
        return nn.Parameter(torch.randn(self.slots) * std)

    def _places(self, keys: Tensor, fetch: int) -> Tensor:
        """First slots (n, chunks) of keys (n, chunks)."""
        mixed = (keys + (self.seed + 1) * 7919 + fetch * 104_729) * MIXERS[fetch % len(MIXERS)]
        mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D
        return ((mixed ^ (mixed >> 13)) & 0x7FFFFFFF) % (self.slots - CHUNK + 1)

    def _fetched(self, store: Tensor, places: Tensor) -> Tensor:
        """(n, chunks, CHUNK) values."""
        return nn.functional.embedding(places[..., None] + torch.arange(CHUNK), store[:, None]).squeeze(-1)

    def _keys(self, ids: Tensor) -> Tensor:
        return ids[:, None] * self.chunks + torch.arange(self.chunks)

    def _row(self, chunks: Tensor) -> Tensor:
        return chunks.flatten(1)[:, : self.dim]


class DualSpace(_Values):
    """Two stores: an entry is the sum of what half the functions fetch from one, times the sum of what the others fetch from the other."""

    def __init__(self, shapes: Shapes, ratio: float, seed: int) -> None:
        super().__init__(shapes, ratio, seed, 2)
        each = math.sqrt(shapes.std / (FETCHES / 2))
        self.first, self.second = self._store(each), self._store(each)

    def rows(self, ids: Tensor) -> Tensor:
        keys, half = self._keys(ids), FETCHES // 2
        one = torch.stack([self._fetched(self.first, self._places(keys, u)) for u in range(half)]).sum(0)
        other = torch.stack([self._fetched(self.second, self._places(keys, half + u)) for u in range(half)]).sum(0)
        return self._row(one * other)

    def arrays(self) -> Arrays:
        return floats(first=self.first, second=self.second)


class MultiHop(_Values):
    """Two hops in one store: the signs of what the first fetches find are part of the key of the second ones; both are added."""

    def __init__(self, shapes: Shapes, ratio: float, seed: int) -> None:
        super().__init__(shapes, ratio, seed, 1)
        self.values = self._store(shapes.std / math.sqrt(FETCHES))

    def rows(self, ids: Tensor) -> Tensor:
        keys, half = self._keys(ids), FETCHES // 2
        first = torch.stack([self._fetched(self.values, self._places(keys, u)) for u in range(half)]).sum(0)
        signs = ((first.detach() > 0) * (2 ** torch.arange(CHUNK))).sum(-1)
        onward = keys * 2**CHUNK + signs
        second = torch.stack([self._fetched(self.values, self._places(onward, half + u)) for u in range(half)]).sum(0)
        return self._row(first + second)

    def arrays(self) -> Arrays:
        return floats(values=self.values)


class Beside(Joined):
    """The sum of two methods that divide the bytes: ``share`` of them for the second."""

    def __init__(
        self,
        shapes: Shapes,
        ratio: float,
        seed: int,
        make: Callable[[Shapes, float, int], Embedding],
        other: Callable[[Shapes, float, int], Embedding],
        share: float,
    ) -> None:
        super().__init__(shapes)
        one, two = make(shapes, ratio / (1 - share), seed), other(shapes, ratio / share, seed)
        assert isinstance(one, Joined) and isinstance(two, Joined)
        self.one, self.two = one, two
        self.settles = max(one.settles, two.settles)

    def before_step(self, step: int, per_epoch: int) -> None:
        self.one.before_step(step, per_epoch)
        self.two.before_step(step, per_epoch)

    def rows(self, ids: Tensor) -> Tensor:
        return self.one.rows(ids) + self.two.rows(ids)

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Stored bytes."""
        return self.one.nbytes + self.two.nbytes
