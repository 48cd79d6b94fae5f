"""Rows out of a network or of learnt codes: deep hash embeddings and clustered compositional embeddings."""

from __future__ import annotations

import math

import faiss
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.quality.methods.base import Arrays, Joined, Shapes, TooSmallError, floats, hashed
from hfh_embed.packing import pack

__all__ = ["Clustered", "DeepHash"]

HASHES = 64
CLUSTERINGS = 4


class DeepHash(Joined):
    """DHE (arXiv 2010.10784): HASHES hash values of the id through a network of two hidden layers, as wide as fits.

    Mish as in the paper; layer normalisation where it has batch normalisation, since a batch's distinct ids change.
    """

    def __init__(self, shapes: Shapes, ratio: float, seed: int) -> None:
        super().__init__(shapes)
        most, dim = shapes.budget(ratio) // 4 - shapes.dim, shapes.dim
        linear = HASHES + dim + 6
        width = int((math.sqrt(linear**2 + 4 * most) - linear) / 2)
        if width < 2:
            raise TooSmallError("a network of two hidden units is too much")
        codes = np.random.default_rng((seed, HASHES)).random((shapes.total, HASHES), dtype=np.float32) * 2 - 1
        self.register_buffer("codes", torch.from_numpy(codes), persistent=False)
        self.network = nn.Sequential(
            nn.Linear(HASHES, width),
            nn.LayerNorm(width),
            nn.Mish(),
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.Mish(),
            nn.Linear(width, dim),
        )
        nn.init.normal_(self.network[-1].weight, std=shapes.std * math.sqrt(2 / width))

    def rows(self, ids: Tensor) -> Tensor:
        return self.network(self.codes[ids])

    def arrays(self) -> Arrays:
        return floats(**{name.replace(".", "/"): value for name, value in self.network.named_parameters()})


class Clustered(Joined):
    """CCE (arXiv 2210.06241): columns of two summed pieces each, the first by learnt codes, the second by a hash function.

    After each of the first epochs every column's pieces are clustered: an id's cluster becomes its code, and the second
    piece starts anew with another hash function. The codes of all ids are stored and counted.
    """

    def __init__(self, shapes: Shapes, ratio: float, seed: int) -> None:
        super().__init__(shapes)
        self.seed, budget = seed, shapes.budget(ratio)
        best = (0, 0, 0)
        for columns in (1, 2, 4):
            for bits in range(2, 11):
                used = -(-shapes.total * columns * bits // 8) + 2 * 4 * shapes.dim * 2**bits
                if used <= budget:
                    best = max(best, (columns * bits, -columns, bits))
        if not best[0]:
            raise TooSmallError("a code for each id is too much")
        columns, self.bits = -best[1], best[2]
        buckets = 2**self.bits
        shape = (columns, buckets, shapes.dim // columns)
        self.first = nn.Parameter(torch.randn(shape) * shapes.std / math.sqrt(2))
        self.second = nn.Parameter(torch.randn(shape) * shapes.std / math.sqrt(2))
        self.register_buffer(
            "codes", torch.stack([hashed(shapes.total, buckets, 100 * seed + c) for c in range(columns)])
        )
        self.register_buffer("places", self._drawn(0))
        self.rounds = 0

    def _drawn(self, number: int) -> Tensor:
        """The hash functions of the second pieces after so many clusterings."""
        first = 100 * self.seed + 10 * (number + 1)
        return torch.stack([hashed(self.total, 2**self.bits, first + c) for c in range(len(self.first))])

    def rows(self, ids: Tensor) -> Tensor:
        return torch.cat([self._column(c, ids) for c in range(len(self.first))], dim=1)

    def _column(self, c: int, ids: Tensor) -> Tensor:
        embedding = nn.functional.embedding
        return embedding(self.codes[c][ids], self.first[c]) + embedding(self.places[c][ids], self.second[c])

    @torch.no_grad()
    def before_step(self, step: int, per_epoch: int) -> None:
        if step % per_epoch or not step or self.rounds == CLUSTERINGS:
            return
        self.rounds += 1
        everyone = torch.arange(self.total)
        for c in range(len(self.first)):
            pieces = self._column(c, everyone).contiguous().numpy()
            means = faiss.Kmeans(pieces.shape[1], 2**self.bits, niter=15, seed=self.seed + 1)
            means.train(pieces)
            self.codes[c] = torch.from_numpy(means.index.search(pieces, 1)[1][:, 0])
            self.first[c] = torch.from_numpy(means.centroids)
        self.second.zero_()
        self.places.copy_(self._drawn(self.rounds))

    def arrays(self) -> Arrays:
        packed = pack(self.codes.numpy().reshape(1, -1), self.bits)
        return {"codes": packed} | floats(first=self.first, second=self.second)
