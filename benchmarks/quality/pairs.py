"""amazon_book: matrix factorisation by cosine, learnt against random items; recall@20 and NDCG@20 over all items.

The score is the cosine of user and item rows over a temperature, the loss a softmax over the item and NEGATIVES uniformly
drawn ones that a batch shares. Items of the training split (for the test also of the validation split) are left out of
a user's ranking, as in KGAT's protocol; models learn from the training split alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.quality.data import Pairs
from benchmarks.quality.methods.base import Embedding, Shapes
from benchmarks.quality.metrics import ndcg, recall

__all__ = ["PairTask"]

DIM, BATCH, NEGATIVES, TOP = 32, 1024, 512, 20
TEMPERATURE = 0.12
JUDGED = 3000
"""Users that validate an epoch; the test is on all."""


class Matching(nn.Module):
    """Cosines of users with items."""

    def __init__(self, embed: Embedding) -> None:
        super().__init__()
        self.embed = embed

    def rows(self, field: str, ids: Tensor) -> Tensor:
        """Unit rows (n, D)."""
        return nn.functional.normalize(self.embed((field,), ids[:, None])[:, 0], dim=1)


class PairTask:
    """The pairs, how a model learns from them and how it is judged."""

    goal = "ndcg"
    max_epochs, patience = 200, 2

    def __init__(self, data: Pairs) -> None:
        self.data = data
        self.shapes = Shapes(data.sizes, DIM, data.counts, std=0.1)
        self.steps = -(-len(data.splits["train"]) // BATCH)
        self._seen = {
            "valid": _lists(data.splits["train"], data.sizes["user"]),
            "test": _lists(np.concatenate((data.splits["train"], data.splits["valid"])), data.sizes["user"]),
        }
        self._wanted = {name: _lists(data.splits[name], data.sizes["user"]) for name in ("valid", "test")}

    def model(self, embed: Embedding) -> Matching:
        return Matching(embed)

    def batches(self, generator: np.random.Generator) -> Iterator[Tensor]:
        """The training pairs once, in random order."""
        train = self.data.splits["train"]
        order = generator.permutation(len(train))
        for start in range(0, len(order), BATCH):
            yield torch.from_numpy(train[order[start : start + BATCH]])

    def loss(self, model: Matching, batch: Tensor, generator: np.random.Generator) -> Tensor:
        users = model.rows("user", batch[:, 0])
        others = torch.from_numpy(generator.integers(self.data.sizes["item"], size=NEGATIVES))
        items = model.rows("item", torch.cat((batch[:, 1], others)))
        mine, others_rows = items[: len(batch)], items[len(batch) :]
        against = (users @ others_rows.T).masked_fill(batch[:, 1:] == others[None], -torch.inf)
        logits = torch.cat(((users * mine).sum(1, keepdim=True), against), dim=1) / TEMPERATURE
        return nn.functional.cross_entropy(logits, torch.zeros(len(batch), dtype=torch.long))

    @torch.no_grad()
    def score(self, model: Matching, split: str) -> dict[str, float]:
        items = model.rows("item", torch.arange(self.data.sizes["item"]))
        (seen, seen_at), (wanted, wanted_at) = self._seen[split], self._wanted[split]
        count = np.diff(wanted_at)
        users = np.flatnonzero(count)
        if split == "valid":
            users = users[:JUDGED]
        found = []
        for block in np.array_split(users, max(1, len(users) // 64)):
            scores = model.rows("user", torch.from_numpy(block)) @ items.T
            row = np.repeat(np.arange(len(block)), np.diff(seen_at)[block])
            scores[torch.from_numpy(row), torch.from_numpy(_of(seen, seen_at, block))] = -torch.inf
            is_wanted = np.zeros(scores.shape, dtype=bool)
            is_wanted[np.repeat(np.arange(len(block)), count[block]), _of(wanted, wanted_at, block)] = True
            best = scores.topk(min(TOP, scores.shape[1]), dim=1).indices.numpy()
            found.append(np.take_along_axis(is_wanted, best, axis=1))
        hits = np.concatenate(found)
        return {"recall": float(recall(hits, count[users]).mean()), "ndcg": float(ndcg(hits, count[users]).mean())}


def _lists(pairs: np.ndarray, users: int) -> tuple[np.ndarray, np.ndarray]:
    """The items of each user after one another, and where each user's begin."""
    order = np.argsort(pairs[:, 0], kind="stable")
    return pairs[order, 1], np.concatenate(([0], np.cumsum(np.bincount(pairs[:, 0], minlength=users))))


def _of(items: np.ndarray, starts: np.ndarray, users: np.ndarray) -> np.ndarray:
    """The items of some users after one another."""
    return np.concatenate([items[starts[user] : starts[user + 1]] for user in users])
