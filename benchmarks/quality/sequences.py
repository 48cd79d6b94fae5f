"""beauty: one causal self-attention block (SASRec) guesses the next item; HR@10 and NDCG@10 with all items ranked.

The score is the cosine of the state and an item's row over a temperature, the loss a softmax over the item and NEGATIVES uniformly
drawn ones that a batch shares. A user's earlier items are left out of the ranking. Only the item table is compressed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.quality.data import Sequences
from benchmarks.quality.methods.base import Embedding, Shapes

__all__ = ["SequenceTask"]

DIM, LENGTH, BATCH, NEGATIVES, TOP = 32, 20, 128, 512, 10
TEMPERATURE = 0.1
JUDGED = 3000
"""Users that validate an epoch; the test is on all."""


class NextItem(nn.Module):
    """States (B, L, D) of item sequences (B, L), and unit rows of items."""

    def __init__(self, embed: Embedding) -> None:
        super().__init__()
        self.embed = embed
        self.place = nn.Parameter(torch.randn(LENGTH, DIM) * 0.02)
        self.norm = nn.LayerNorm(DIM)
        self.block = nn.TransformerEncoderLayer(
            DIM, nhead=2, dim_feedforward=2 * DIM, dropout=0.2, batch_first=True, norm_first=True
        )
        mask = torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), diagonal=1)
        self.register_buffer("mask", mask, persistent=False)

    def items(self, ids: Tensor) -> Tensor:
        """Unit rows (..., D)."""
        return nn.functional.normalize(self.embed(("item",), ids.reshape(-1, 1)), dim=2).view(*ids.shape, DIM)

    def forward(self, sequences: Tensor) -> Tensor:
        length = sequences.shape[1]
        x = self.norm(self.items(sequences) + self.place[:length])
        return nn.functional.normalize(self.block(x, src_mask=self.mask[:length, :length]), dim=2)


class SequenceTask:
    """The sequences, how a model learns from them and how it is judged."""

    goal = "ndcg"
    max_epochs, patience = 200, 2

    def __init__(self, data: Sequences) -> None:
        self.data = data
        self.shapes = Shapes(data.sizes, DIM, data.counts, std=0.1)
        self.lengths = np.diff(data.offsets)
        self.steps = -(-len(self.lengths) // BATCH)

    def model(self, embed: Embedding) -> NextItem:
        return NextItem(embed)

    def _until(self, users: np.ndarray, held: int) -> Tensor:
        """Up to LENGTH items of each user before the last ``held``, from the left, then zeros."""
        ends = self.data.offsets[users + 1] - held
        starts = np.maximum(self.data.offsets[users], ends - LENGTH)
        place = starts[:, None] + np.arange(int((ends - starts).max()))
        inside = place < ends[:, None]
        return torch.from_numpy(np.where(inside, self.data.items[np.minimum(place, len(self.data.items) - 1)], 0))

    def batches(self, generator: np.random.Generator) -> Iterator[Tensor]:
        """Every user's training sequence once; users of about equal length together."""
        order = np.argsort(np.minimum(self.lengths, LENGTH) + generator.random(len(self.lengths)))
        groups = np.array_split(order, self.steps)
        for number in generator.permutation(len(groups)):
            yield self._until(groups[number], held=2)

    def loss(self, model: NextItem, batch: Tensor, generator: np.random.Generator) -> Tensor:
        known, following = batch[:, :-1], batch[:, 1:]
        real = following > 0
        states = model(known)[real]
        wanted = following[real]
        others = torch.from_numpy(generator.integers(1, self.data.sizes["item"], size=NEGATIVES))
        rows = model.items(torch.cat((wanted, others)))
        mine, others_rows = rows[: len(wanted)], rows[len(wanted) :]
        against = (states @ others_rows.T).masked_fill(wanted[:, None] == others[None], -torch.inf)
        logits = torch.cat(((states * mine).sum(1, keepdim=True), against), dim=1) / TEMPERATURE
        return nn.functional.cross_entropy(logits, torch.zeros(len(wanted), dtype=torch.long))

    @torch.no_grad()
    def score(self, model: NextItem, split: str) -> dict[str, float]:
        held, users_judged = (2, min(JUDGED, len(self.lengths))) if split == "valid" else (1, len(self.lengths))
        rows = model.items(torch.arange(self.data.sizes["item"]))
        rows[0] = 0
        ranks = []
        for users in np.array_split(np.arange(users_judged), max(1, users_judged // 64)):
            known = self._until(users, held)
            last = (known > 0).sum(1) - 1
            states = model(known)[torch.arange(len(users)), last]
            scores = states @ rows.T
            wanted = torch.from_numpy(self.data.items[self.data.offsets[users + 1] - held])
            mine = scores.gather(1, wanted[:, None])
            scores.scatter_(1, known, -torch.inf)  # earlier items, and padding, are not guessed
            above = (scores > mine).sum(1) + (scores == mine).sum(1) // 2
            ranks.append(above.numpy())
        rank = np.concatenate(ranks)
        gains = np.where(rank < TOP, 1 / np.log2(rank + 2), 0)
        return {"hr": float((rank < TOP).mean()), "ndcg": float(gains.mean())}
