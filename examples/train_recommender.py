"""Train a recommender with its tables dense, 10 and 100 times smaller; save the smaller tables, serve them, ask for rows.

    python examples/train_recommender.py                 a few minutes on two cores
    python examples/train_recommender.py --sample        seconds, on the sample data

The model is a small DLRM: one embedding for each of 21 id fields, their pairwise dot products, a network on top. The only
thing that differs between the runs is what the embeddings are made of: ``nn.Embedding``, or ``HFHEmbedding`` on one pool
that all fields share.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch
from completejourney import DATA, FIELDS, Split, load
from torch import Tensor, nn

import hfh_embed
from hfh_embed import nn as hnn
from service.client import Client

DIM = 32
BATCH = 4096
DENSE_RATE, POOL_RATE = 5e-3, 2e-3
"""Adam's learning rates: the better of 1e-3, 5e-3 and 2e-2 for dense tables, and of 2e-3 and 5e-3 for a pool."""


class Recommender(nn.Module):
    """Click probability from 21 ids: dot products of all pairs of their rows, then two layers."""

    def __init__(self, tables: nn.ModuleDict) -> None:
        super().__init__()
        self.tables = tables
        pairs = len(FIELDS) * (len(FIELDS) - 1) // 2
        self.top = nn.Sequential(nn.Linear(pairs + len(FIELDS) * DIM, 128), nn.ReLU(), nn.Linear(128, 1))
        rows, columns = torch.triu_indices(len(FIELDS), len(FIELDS), offset=1)
        self.register_buffer("pairs", rows * len(FIELDS) + columns, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, 21) ids to (B,) logits."""
        rows = torch.stack([self.tables[field](ids[:, number]) for number, field in enumerate(FIELDS)], dim=1)
        dots = (rows @ rows.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        return self.top(torch.cat((dots, rows.flatten(1)), dim=1)).squeeze(1)


def build(sizes: dict[str, int], ratio: float | None) -> nn.ModuleDict:
    """One table a field: dense ones, or all on one pool with one ratio."""
    if ratio is None:
        tables = nn.ModuleDict({field: nn.Embedding(n, DIM) for field, n in sizes.items()})
        for table in tables.values():
            nn.init.normal_(table.weight, std=0.05)
        return tables
    pool = hnn.Pool.for_tables({field: (n, DIM) for field, n in sizes.items()}, ratio=ratio, std=0.05)
    return nn.ModuleDict({f: hnn.HFHEmbedding(n, DIM, pool=pool, name=f) for f, n in sizes.items()})


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


def train(model: Recommender, splits: dict[str, Split], epochs: int, rate: float, name: str) -> tuple[float, float]:
    """Train with Adam, keep the epoch that is best on the validation weeks; returns its test AUC and the seconds of training."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    best, chosen, spent = 0.0, 0.0, 0.0
    rows = splits["train"]
    for epoch in range(epochs):
        began = time.perf_counter()
        order = torch.randperm(len(rows.ids)).numpy()
        for start in range(0, len(order), BATCH):
            chosen_rows = order[start : start + BATCH]
            logits = model(torch.from_numpy(rows.ids[chosen_rows]))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(rows.labels[chosen_rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if sys.stderr.isatty():
                print(f"\r{name} epoch {epoch + 1}/{epochs} {start / len(order):4.0%}", end="", file=sys.stderr)
        spent += time.perf_counter() - began
        valid = evaluate(model, splits["valid"])
        if valid <= best:
            break
        best, chosen = valid, evaluate(model, splits["test"])
    return chosen, spent


def serve_and_ask(snapshot: Path, ids: np.ndarray) -> np.ndarray:
    """Start the service on the snapshot, fetch rows of the product table by HTTP, stop the service."""
    command = [sys.executable, "-m", "hfh_embed.cli", "serve", str(snapshot), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = next(word for line in server.stdout for word in line.split() if word.startswith("http://"))
            with urllib.request.urlopen(f"{url}/readyz", timeout=30):
                pass
            with Client(url) as client:
                return client.lookup("prod", ids)
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with events.parquet (default: %(default)s)")
    parser.add_argument("--sample", action="store_true", help="the sample data: seconds instead of minutes")
    parser.add_argument("--ratios", type=float, nargs="*", default=[10, 100], help="default: 10 100")
    parser.add_argument("--epochs", type=int, default=2, help="at most; stops early (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="where to keep the last snapshot")
    args = parser.parse_args()
    splits, sizes = load(args.data, args.sample)
    print(f"{len(splits['train'].ids):,} training rows, {sum(sizes.values()):,} ids in {len(sizes)} fields", flush=True)
    model = None
    for ratio in (None, *args.ratios):
        torch.manual_seed(args.seed)
        name = "dense" if ratio is None else f"HFH {ratio:g}x"
        model = Recommender(build(sizes, ratio))
        stored = 4 * DIM * sum(sizes.values()) if ratio is None else model.tables["prod"].pool.nbytes
        score, seconds = train(model, splits, args.epochs, DENSE_RATE if ratio is None else POOL_RATE, name)
        print(
            f"\r{name:<10} tables {stored:>12,} bytes   test AUC {score:.4f}   trained in {seconds:.0f} s", flush=True
        )
    if not args.ratios:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = args.output or Path(folder) / "recommender.hfh"
        hnn.save(model.tables, path)
        print(f"saved {path.name}: {path.stat().st_size:,} bytes, version {hfh_embed.inspect(path).version}")
        ids = np.array([1, 2, 3])
        served = serve_and_ask(path, ids)
        trained = model.tables["prod"](torch.from_numpy(ids)).detach().numpy()
        print(f"served rows of products {ids.tolist()} equal the trained ones: {bool((served == trained).all())}")


if __name__ == "__main__":
    main()
