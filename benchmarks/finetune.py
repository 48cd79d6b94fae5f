"""Fine-tuning a compressed table: what a task loses by `hfh compress`, and what a few hundred steps win back.

    OMP_NUM_THREADS=1 python -m benchmarks.finetune

The full table of the amazon_book task (users and items, matrix factorisation) is trained as in benchmarks/quality, compressed by
``HFHEmbedding.from_pretrained`` with the ids' frequencies, and trained on: codes stay, the map, values, centroids and exact rows learn. The
rate is chosen on the validation split among RATES; figures are of the test split. Nothing is written but the rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.data import DATA, Size, load_pairs
from benchmarks.quality.methods.base import Arrays, Joined, Shapes
from benchmarks.quality.methods.rows import Full
from benchmarks.quality.pairs import Matching, PairTask
from benchmarks.quality.runner import START
from benchmarks.quality.training import train
from benchmarks.record import RESULTS, Recorder
from hfh_embed import nn as hnn

RATIOS = (16, 32, 64, 128)
RATES = (3e-4, 1e-3, 3e-3)
STEPS = 300


class Fitted(Joined):
    """A trained table after `hfh compress`."""

    def __init__(self, shapes: Shapes, weight: Tensor, ratio: float) -> None:
        super().__init__(shapes)
        self.table = hnn.HFHEmbedding.from_pretrained(
            weight, freeze=False, ratio=ratio, frequencies=shapes.joined_counts
        )

    def rows(self, ids: Tensor) -> Tensor:
        return self.table(ids)

    def arrays(self) -> Arrays:
        return self.table.table.arrays()


def tuned(task: PairTask, model: Matching, rate: float, steps: int, seed: int) -> float:
    """Train the model for some steps; its validation figure."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    generator = np.random.default_rng(seed)
    done = 0
    while done < steps:
        for batch in task.batches(generator):
            if done == steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - done / steps)
            optimizer.zero_grad()
            task.loss(model, batch, generator).backward()
            optimizer.step()
            done += 1
    return task.score(model, "valid")[task.goal]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the data sets (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="the sample file, one epoch, two steps; rows go nowhere")
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = PairTask(load_pairs(Size.SAMPLE if args.quick else Size.PART, args.data))
    folder = RESULTS.parent.parent / "var" if args.quick else RESULTS
    folder.mkdir(exist_ok=True)
    record = Recorder("finetune", folder=folder)
    torch.manual_seed(0)
    full = Full(task.shapes, 1, 0)
    model = task.model(full)
    optimizer = torch.optim.Adam(model.parameters(), lr=START["amazon_book"], fused=True)
    best, _ = train(task, model, full, optimizer, 0, 1 if args.quick else task.max_epochs)
    record.row(ratio=1, nbytes=full.nbytes, full=best["test"])
    print(f"full table: NDCG@20 {best['test']['ndcg']:.4f}, recall@20 {best['test']['recall']:.4f}", flush=True)
    weight = full.values.detach()
    for ratio in RATIOS:
        untuned = task.model(Fitted(task.shapes, weight, ratio))
        before, valid = task.score(untuned, "test"), task.score(untuned, "valid")[task.goal]
        found: list[tuple[float, float, Matching]] = [(valid, 0.0, untuned)]
        for rate in RATES:
            other = task.model(Fitted(task.shapes, weight, ratio))
            found.append((tuned(task, other, rate, 2 if args.quick else STEPS, seed=0), rate, other))
        _, rate, chosen = max(found, key=lambda one: one[0])
        after, nbytes = task.score(chosen, "test"), chosen.embed.nbytes
        record.row(
            ratio=ratio, nbytes=nbytes, reached=round(task.shapes.dense_nbytes / nbytes, 2), compressed=before,
            tuned=after, rate=rate, steps=STEPS, full=best["test"],
        )  # fmt: skip
        print(
            f"{ratio:>4}x  {nbytes:>9,} bytes  NDCG@20 {before['ndcg']:.4f} compressed, {after['ndcg']:.4f} tuned (rate {rate:g})",
            flush=True,
        )


if __name__ == "__main__":
    main()
