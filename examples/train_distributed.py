"""Train one model in several processes or on several machines, all tables whole in each: the losses of one process with the whole batch.

    python examples/train_distributed.py
    torchrun --nproc-per-node 2 examples/train_distributed.py            the same losses

On two machines, with --node-rank 0 on the first and 1 on the second:

    torchrun --nnodes 2 --node-rank 0 --master-addr FIRST --master-port 29500 examples/train_distributed.py

The model guesses the next word from the last one (``HFHEmbedding``), the ten before (``HFHEmbeddingBag``) and a small
network; a ``VocabularyHead`` over the table of the words takes the loss. All of it is one pool. The text is made up.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hfh_embed import nn as hnn

WORDS, DIM, HISTORY = 20_000, 64, 10


class NextWord(nn.Module):
    """Words so far to the loss of the next one: all that needs the pool is in ``forward``, where DDP looks on."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        pool = hnn.Pool.for_tables({"words": (WORDS, DIM), "history": (WORDS, DIM)}, ratio=ratio, std=0.1)
        self.words = hnn.HFHEmbedding(WORDS, DIM, pool=pool, name="words")
        self.history = hnn.HFHEmbeddingBag(WORDS, DIM, pool=pool, name="history", mode="mean")
        self.network = nn.Sequential(nn.Linear(2 * DIM, 128), nn.ReLU(), nn.Linear(128, DIM))
        self.head = hnn.VocabularyHead(WORDS, DIM, tie=self.words)

    def forward(self, texts: Tensor) -> Tensor:
        """The mean loss of texts (B, HISTORY + 2)."""
        seen, last, following = texts[:, :HISTORY], texts[:, HISTORY], texts[:, HISTORY + 1]
        states = self.network(torch.cat((self.words(last), self.history(seen)), dim=1))
        loss: Tensor = self.head.loss(states, following)
        return loss


def made_up(texts: int, generator: torch.Generator) -> Tensor:
    """Texts whose words follow one another by a fixed rule, from few first words."""
    first = torch.randint(0, 50, (texts, 1), generator=generator)
    return (first * 379 + torch.arange(HISTORY + 2) * 37) % WORDS


def train(steps: int, batch: int, ratio: float, rank: int, processes: int) -> None:
    """Train, and print what all processes together lost before each step."""
    torch.manual_seed(0)
    model = NextWord(ratio)
    trained: nn.Module = nn.parallel.DistributedDataParallel(model) if processes > 1 else model
    optimizers = [hnn.PoolAdam(model, lr=0.003), torch.optim.Adam(model.network.parameters(), lr=0.003)]
    generator = torch.Generator().manual_seed(1)
    for number in range(steps):
        mine = made_up(batch, generator).chunk(processes)[rank]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = trained(mine)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        total = loss.detach()
        if processes > 1:
            dist.all_reduce(total)
        if rank == 0:
            print(f"step {number + 1} loss {float(total) / processes:.6f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64, help="of all processes together (default: %(default)s)")
    parser.add_argument("--ratio", type=float, default=50)
    args = parser.parse_args()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if args.batch % processes:
        raise SystemExit(
            f"a batch of {args.batch} does not divide over {processes} processes; give a multiple of {processes}"
        )
    rank = 0
    if processes > 1:
        dist.init_process_group("gloo")
        rank = dist.get_rank()
    train(args.steps, args.batch, args.ratio, rank, processes)
    if processes > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
