"""completejourney: a small DLRM. AUC over all rows, and NDCG@10 inside each shopping trip."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.quality.data import Clicks
from benchmarks.quality.methods.base import Embedding, Shapes
from benchmarks.quality.metrics import auc, grouped_ndcg

__all__ = ["ClickTask"]

DIM, HIDDEN, BATCH = 32, 64, 1024


class Clicking(nn.Module):
    """Click probability: dot products of all pairs of rows beside the rows themselves, then two layers."""

    def __init__(self, embed: Embedding, fields: tuple[str, ...]) -> None:
        super().__init__()
        self.embed, self.fields = embed, fields
        count = len(fields)
        self.top = nn.Sequential(
            nn.Linear(count * (count - 1) // 2 + count * DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )
        rows, columns = torch.triu_indices(count, count, offset=1)
        self.register_buffer("pairs", rows * count + columns, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, F) ids to (B,) logits."""
        rows = self.embed(self.fields, ids)
        dots = (rows @ rows.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        return self.top(torch.cat((dots, rows.flatten(1)), dim=1)).squeeze(1)


class ClickTask:
    """The labelled rows, how a model learns from them and how it is judged."""

    goal = "auc"
    max_epochs, patience = 60, 1

    def __init__(self, data: Clicks) -> None:
        self.data = data
        self.shapes = Shapes(data.sizes, DIM, data.counts, std=0.05)
        self.steps = -(-len(data.splits["train"].ids) // BATCH)

    def model(self, embed: Embedding) -> Clicking:
        return Clicking(embed, self.data.fields)

    def batches(self, generator: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """The training rows once, in random order."""
        train = self.data.splits["train"]
        order = generator.permutation(len(train.ids))
        for start in range(0, len(order), BATCH):
            mine = order[start : start + BATCH]
            yield torch.from_numpy(train.ids[mine]), torch.from_numpy(train.labels[mine])

    def loss(self, model: Clicking, batch: tuple[Tensor, Tensor], generator: np.random.Generator) -> Tensor:
        ids, labels = batch
        return nn.functional.binary_cross_entropy_with_logits(model(ids), labels)

    @torch.no_grad()
    def score(self, model: Clicking, split: str) -> dict[str, float]:
        rows = self.data.splits[split]
        parts = [model(torch.from_numpy(rows.ids[i : i + 8 * BATCH])) for i in range(0, len(rows.ids), 8 * BATCH)]
        scores = torch.cat(parts).numpy()
        return {"auc": auc(rows.labels, scores), "ndcg": grouped_ndcg(rows.labels, scores, rows.trips)}
