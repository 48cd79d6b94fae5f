"""The end of a language model, VocabularyHead against dense weights, in one run: targets with pass or fail.

    python -m benchmarks.vocabulary_head [--quick] [--threads 1]

Loss and backward of 2,048 hidden states of 256 entries over 256,000 ids, ``F.linear`` and ``F.cross_entropy`` on dense weights
as the peer, and the 50 largest logits of one hidden state. Steps take turns; figures are medians of the turns. Peak memory is
what a process grows by from before the layer was made, gradients included, each in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.record import Recorder
from benchmarks.train_step import most_resident
from hfh_embed import nn as hnn
from hfh_embed.nn import tiles

V, D, TOKENS, K = 256_000, 256, 2048, 50
MOST_BYTES = 4e9
DENSE = "dense"


class _Dense(nn.Linear):
    """F.linear and F.cross_entropy, as most models end."""

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self(hidden), targets)

    def topk(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            values, ids = self(hidden).topk(k)
        return values, ids


def _dense(v: int) -> Any:
    layer = _Dense(D, v, bias=False)
    nn.init.normal_(layer.weight, std=D**-0.5)
    return layer


HEADS: dict[str, Callable[[int], Any]] = {
    DENSE: _dense,
    "hfh, ratio 100": lambda v: hnn.VocabularyHead(v, D, ratio=100, std=D**-0.5),
    "hfh, ratio 32": lambda v: hnn.VocabularyHead(v, D, ratio=32, std=D**-0.5),
    "hfh, ratio 10": lambda v: hnn.VocabularyHead(v, D, ratio=10, std=D**-0.5),
}
OURS = "hfh, ratio 100"


def step(head: Any, hidden: Tensor, targets: Tensor) -> tuple[float, float]:
    """Seconds of the loss and of its backward pass."""
    began = time.perf_counter()
    loss = head.loss(hidden, targets)
    between = time.perf_counter()
    loss.backward()
    ended = time.perf_counter()
    head.zero_grad()
    hidden.grad = None
    return between - began, ended - between


def batch(v: int) -> tuple[Tensor, Tensor]:
    return torch.randn(TOKENS, D, requires_grad=True), torch.randint(0, v, (TOKENS,))


def peak_bytes(name: str, v: int, threads: int) -> int:
    """What a process with this head grows by in two steps."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.vocabulary_head",
        "--threads",
        str(threads),
        "--peak",
        name,
        "--rows",
        str(v),
    ]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _print_peak(name: str, v: int) -> None:
    hidden, targets = batch(v)
    before = most_resident()
    head = HEADS[name](v)
    for _ in range(2):
        step(head, hidden, targets)
    print(most_resident() - before)


def _largest(head: Any, hidden: Tensor) -> float:
    began = time.perf_counter()
    head.topk(hidden, K)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two turns instead of five")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", metavar="HEAD", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.peak:
        return _print_peak(args.peak, args.rows)
    record = Recorder("vocabulary_head")
    heads = {name: make(V) for name, make in HEADS.items()}
    hidden, targets = batch(V)
    one = hidden.detach()[:1].contiguous()
    steps: dict[str, list[tuple[float, float]]] = {name: [] for name in heads}
    searches: dict[str, list[float]] = {name: [] for name in heads}
    for _ in range(2 if args.quick else 5):
        for name, head in heads.items():
            steps[name].append(step(head, hidden, targets))
            searches[name] += [_largest(head, one) for _ in range(5)]
    with _torch_products():
        steps["hfh, ratio 100, torch's products"] = [step(heads[OURS], hidden, targets)]
    heads.clear()
    peaks = {name: peak_bytes(name, V, args.threads) for name in HEADS}
    million = peak_bytes(OURS, 1_000_000, args.threads)
    for name, taken in steps.items():
        loss, backward = (statistics.median(times) for times in zip(*taken, strict=True))
        found = (
            {"topk_ms": round(statistics.median(searches[name]) * 1e3, 3), "peak_bytes": peaks[name]}
            if name in peaks
            else {}
        )
        row = record.row(
            head=name, vocabulary=V, dim=D, tokens=TOKENS, threads=args.threads, loss_ms=round(loss * 1e3, 1),
            backward_ms=round(backward * 1e3, 1), **found,
        )  # fmt: skip
        print({key: row[key] for key in ("head", "loss_ms", "backward_ms", *found)}, flush=True)
    record.row(head=OURS, vocabulary=1_000_000, dim=D, tokens=TOKENS, threads=args.threads, peak_bytes=million)
    whole = {name: [a + b for a, b in taken] for name, taken in steps.items()}
    verdicts = (
        ("peak memory, hfh / dense", peaks[OURS] / peaks[DENSE], 1 / 8),
        ("loss and backward, hfh / dense", _ratio(whole[OURS], whole[DENSE]), 1.0),
        ("a vocabulary of 1,000,000: peak memory in 4 GB", million / MOST_BYTES, 1.0),
        ("50 largest logits of one hidden state, hfh / dense", _ratio(searches[OURS], searches[DENSE]), 1.0),
    )
    for name, reached, wanted in verdicts:
        print(f"{name:<60} {reached:6.3f} {wanted:6.3f}  {'pass' if reached <= wanted else 'FAIL'}")
        record.row(
            target=name, reached=round(reached, 4), wanted=wanted, passed=reached <= wanted, threads=args.threads
        )
    sys.exit(0 if all(reached <= wanted for _, reached, wanted in verdicts) else 1)


@contextlib.contextmanager
def _torch_products() -> Iterator[None]:
    """Inside, the loss is made of torch's own products, as on a processor without AMX."""
    serves, tiles.serves_losses = tiles.serves_losses, lambda *_: False
    try:
        yield
    finally:
        tiles.serves_losses = serves


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
