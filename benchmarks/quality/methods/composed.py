"""Rows composed of a few shared pieces: quotient and remainder, hash embeddings, tensor trains."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.quality.methods.base import Arrays, Joined, Shapes, TooSmallError, floats, hashed

__all__ = ["HashEmbeddings", "QuotientRemainder", "TensorTrain"]


class QuotientRemainder(Joined):
    """Compositional embeddings (arXiv 1909.02107): the product of one row of each of k tables, complementary partitions.

    An id's digits in a mixed radix say which rows: the remainder for the first table, digits of the quotient for k - 1 equal
    ones. Of all that fit, the fewest tables and the largest first one.
    """

    def __init__(self, shapes: Shapes, ratio: float, seed: int) -> None:
        super().__init__(shapes)
        first, radix, parts = _partition(shapes.total, shapes.budget(ratio) // (4 * shapes.dim))
        self.first, self.radix = first, radix
        self.remainders = nn.Parameter(torch.randn(first, shapes.dim) * shapes.std)
        self.quotients = nn.Parameter(1 + torch.randn(parts - 1, radix, shapes.dim) * 0.5)

    def rows(self, ids: Tensor) -> Tensor:
        out = nn.functional.embedding(ids % self.first, self.remainders)
        digits = ids // self.first
        for table in self.quotients:
            out = out * nn.functional.embedding(digits % self.radix, table)
            digits = digits // self.radix
        return out

    def arrays(self) -> Arrays:
        return floats(remainders=self.remainders, quotients=self.quotients)


def _partition(total: int, most: int) -> tuple[int, int, int]:
    """Rows of the first table and of each other one, and how many tables, at most ``most`` rows in all."""
    for parts in range(2, 9):
        for radix in range(2, most):
            first = -(-total // radix ** (parts - 1))
            if first + (parts - 1) * radix <= most:
                return first, radix, parts
            if (parts - 1) * radix > most:
                break
    raise TooSmallError(f"{most} rows are too few for complementary partitions of {total} ids")


class HashEmbeddings(Joined):
    """Hash Embeddings (arXiv 1709.03933): two hashed component rows, weighed by coefficients that are hashed too.

    A fifth of the bytes for the coefficients, as many as that gives, the rest for component rows.
    """

    def __init__(self, shapes: Shapes, ratio: float, seed: int) -> None:
        super().__init__(shapes)
        budget = shapes.budget(ratio)
        weights = min(shapes.total, budget // 5 // 8)
        buckets = (budget - 8 * weights) // (4 * shapes.dim)
        if buckets < 2 or weights < 1:
            raise TooSmallError("fewer than two component rows")
        self.weights = nn.Parameter(1 / math.sqrt(2) + torch.randn(weights, 2) * 0.5)
        self.components = nn.Parameter(torch.randn(buckets, shapes.dim) * shapes.std)
        places = [hashed(shapes.total, buckets, 2 * seed + u) for u in range(2)]
        self.register_buffer("places", torch.stack(places, dim=1), persistent=False)
        own = torch.arange(shapes.total) if weights == shapes.total else hashed(shapes.total, weights, seed)
        self.register_buffer("weight_of", own, persistent=False)

    def rows(self, ids: Tensor) -> Tensor:
        components = nn.functional.embedding(self.places[ids], self.components)
        weights = nn.functional.embedding(self.weight_of[ids], self.weights)
        return (components * weights[:, :, None]).sum(dim=1)

    def arrays(self) -> Arrays:
        return floats(weights=self.weights, components=self.components)


class TensorTrain(Joined):
    """TT-Rec (arXiv 2101.11714): three cores of one rank, the largest that fits."""

    def __init__(self, shapes: Shapes, ratio: float, seed: int) -> None:
        super().__init__(shapes)
        self.radices = _factors(shapes.total)
        self.columns = _columns(shapes.dim)
        (n1, n2, n3), (d1, d2, d3) = self.radices, self.columns
        most, rank = shapes.budget(ratio) // 4, 0
        while (n1 * d1 + n3 * d3) * (rank + 1) + n2 * d2 * (rank + 1) ** 2 <= most:
            rank += 1
        if rank < 1:
            raise TooSmallError("rank 1 is too much")
        spread = (shapes.std / rank) ** (1 / 3)
        self.left = nn.Parameter(torch.randn(n1, d1 * rank) * spread)
        self.middle = nn.Parameter(torch.randn(n2, rank * d2 * rank) * spread)
        self.right = nn.Parameter(torch.randn(n3, rank * d3) * spread)
        self.rank = rank

    def rows(self, ids: Tensor) -> Tensor:
        (_, n2, n3), (d1, d2, d3), r = self.radices, self.columns, self.rank
        left = nn.functional.embedding(ids // (n2 * n3), self.left).view(-1, d1, r)
        middle = nn.functional.embedding(ids // n3 % n2, self.middle).view(-1, r, d2 * r)
        right = nn.functional.embedding(ids % n3, self.right).view(-1, r, d3)
        return ((left @ middle).view(-1, d1 * d2, r) @ right).flatten(1)

    def arrays(self) -> Arrays:
        return floats(left=self.left, middle=self.middle, right=self.right)


def _factors(total: int) -> tuple[int, int, int]:
    """Three numbers about equal whose product is at least ``total``."""
    side = math.ceil(total ** (1 / 3))
    second = math.ceil(math.sqrt(total / side))
    return side, second, -(-total // (side * second))


def _columns(dim: int) -> tuple[int, int, int]:
    """Three factors of ``dim``, about equal powers of two."""
    power = dim.bit_length() - 1
    if dim != 1 << power:
        raise TooSmallError(f"rows of {dim} entries; this peer takes powers of two")
    low = power // 3
    return 1 << low, 1 << (power - low - (power - low) // 2), 1 << ((power - low) // 2)
