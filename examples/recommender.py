"""The small DLRM of the training example, its tables dense or HFH, and how it is trained and judged."""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

import numpy as np
import torch
from completejourney import FIELDS, Split
from torch import Tensor, nn

from hfh_embed import nn as hnn
from hfh_embed.budget import Form

__all__ = ["DIM", "Outcome", "Recommender", "build", "evaluate", "train"]

DIM = 32
BATCH = 4096


class Recommender(nn.Module):
    """Click probability from 21 ids: dot products of all pairs of their rows, then two layers."""

    def __init__(self, tables: nn.ModuleDict, dim: int = DIM) -> None:
        super().__init__()
        self.tables = tables
        pairs = len(FIELDS) * (len(FIELDS) - 1) // 2
        self.top = nn.Sequential(nn.Linear(pairs + len(FIELDS) * dim, 128), nn.ReLU(), nn.Linear(128, 1))
        rows, columns = torch.triu_indices(len(FIELDS), len(FIELDS), offset=1)
        self.register_buffer("pairs", rows * len(FIELDS) + columns, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, 21) ids to (B,) logits."""
        rows = torch.stack([self.tables[field](ids[:, number]) for number, field in enumerate(FIELDS)], dim=1)
        dots = (rows @ rows.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        return self.top(torch.cat((dots, rows.flatten(1)), dim=1)).squeeze(1)


def build(
    sizes: dict[str, int],
    ratio: float | None,
    form: Form | None = None,
    seed: int = 0,
    dim: int = DIM,
    uses: dict[str, np.ndarray] | None = None,
) -> nn.ModuleDict:
    """One table a field: dense ones, or all on one pool with one ratio, form (None: chosen from it and from ``uses``, how often training uses
    each id) and seed of its hash functions."""
    if ratio is None:
        tables = nn.ModuleDict({field: nn.Embedding(n, dim) for field, n in sizes.items()})
        for table in tables.values():
            nn.init.normal_(table.weight, std=0.05)
        return tables
    shapes = {field: (n, dim) for field, n in sizes.items()}
    pool = hnn.Pool.for_tables(shapes, ratio=ratio, form=form, frequencies=uses, seed=seed, std=0.05)
    return nn.ModuleDict({f: hnn.HFHEmbedding(n, dim, pool=pool, name=f) for f, n in sizes.items()})


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs that are in the right order, ties half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = labels.sum()
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))


@torch.no_grad()
def evaluate(model: Recommender, split: Split) -> float:
    """AUC of the model on a split."""
    model.eval()
    scores = [model(torch.from_numpy(split.ids[i : i + 16 * BATCH])) for i in range(0, len(split.ids), 16 * BATCH)]
    model.train()
    return auc(split.labels, torch.cat(scores).numpy())


class Outcome(NamedTuple):
    """AUC on validation and test weeks of the best epoch, which epoch that was (from 1 on), and the seconds of training."""

    valid: float
    test: float
    epoch: int
    seconds: float


def train(
    model: Recommender,
    splits: dict[str, Split],
    epochs: int,
    rate: float,
    name: str,
    batch: int = BATCH,
    descent: float = 0.0,
) -> Outcome:
    """Train until an epoch is no better on the validation weeks than the one before; the best one counts.

    With Adam, the tables with plain gradient descent where a rate for it is given as ``descent``.
    """
    optimizers = [torch.optim.Adam(model.top.parameters() if descent else model.parameters(), lr=rate)]
    if descent:
        optimizers.append(torch.optim.SGD(model.tables.parameters(), lr=descent))
    best, spent = Outcome(0.0, 0.0, 0, 0.0), 0.0
    rows = splits["train"]
    for epoch in range(epochs):
        began = time.perf_counter()
        order = torch.randperm(len(rows.ids)).numpy()
        for start in range(0, len(order), batch):
            chosen_rows = order[start : start + batch]
            logits = model(torch.from_numpy(rows.ids[chosen_rows]))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(rows.labels[chosen_rows]))
            model.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            if sys.stderr.isatty():
                print(f"\r{name} epoch {epoch + 1}/{epochs} {start / len(order):4.0%}", end="", file=sys.stderr)
        spent += time.perf_counter() - began
        valid = evaluate(model, splits["valid"])
        if valid <= best.valid:
            break
        best = Outcome(valid, evaluate(model, splits["test"]), epoch + 1, spent)
    return best._replace(seconds=spent)
