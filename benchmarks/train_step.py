"""A training step (forward, backward, optimizer) against nn.Embedding(sparse=True), in one run: targets with pass or fail.

    python -m benchmarks.train_step [--quick]

213,000 uniform ids a step, rows of 64, one thread; layers take turns, figures are medians of the turns in milliseconds. The
gradient of the rows is the same tensor for all. Peak memory is what the process grew by from before the layer was made, each in
a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.record import Recorder
from hfh_embed import nn as hnn

IDS, D = 213_000, 64
LAYERS: dict[str, Callable[[int], tuple[nn.Module, torch.optim.Optimizer]]] = {}


def _layer(
    name: str, make: Callable[[int], nn.Module], optimizer: Callable[[nn.Module], torch.optim.Optimizer]
) -> None:
    def both(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        layer = make(n)
        return layer, optimizer(layer)

    LAYERS[name] = both


def _hfh(n: int) -> nn.Module:
    return hnn.HFHEmbedding(n, D, ratio=100)


def _narrow(n: int) -> nn.Module:
    return hnn.HFHEmbedding(n, D, ratio=100, master="bfloat16")


def _sparse(n: int) -> nn.Module:
    return nn.Embedding(n, D, sparse=True)


_layer("hfh, PoolSGD", _hfh, lambda layer: hnn.PoolSGD(layer, lr=0.1))
_layer("hfh, PoolAdam", _hfh, lambda layer: hnn.PoolAdam(layer, lr=0.001))
_layer("hfh, bfloat16 masters, PoolSGD", _narrow, lambda layer: hnn.PoolSGD(layer, lr=0.1))
_layer("hfh, bfloat16 masters, PoolAdam", _narrow, lambda layer: hnn.PoolAdam(layer, lr=0.001))
_layer("hfh, torch SGD", _hfh, lambda layer: torch.optim.SGD(layer.parameters(), lr=0.1))
_layer("nn.Embedding sparse, SGD", _sparse, lambda layer: torch.optim.SGD(layer.parameters(), lr=0.1))
_layer("nn.Embedding sparse, SparseAdam", _sparse, lambda layer: torch.optim.SparseAdam(layer.parameters(), lr=0.001))
_layer(
    "nn.Embedding dense, SGD", lambda n: nn.Embedding(n, D), lambda layer: torch.optim.SGD(layer.parameters(), lr=0.1)
)

PAIRS = (
    ("hfh, PoolSGD", "nn.Embedding sparse, SGD"),
    ("hfh, bfloat16 masters, PoolSGD", "nn.Embedding sparse, SGD"),
    ("hfh, PoolAdam", "nn.Embedding sparse, SparseAdam"),
    ("hfh, bfloat16 masters, PoolAdam", "nn.Embedding sparse, SparseAdam"),
)


def step(layer: nn.Module, optimizer: torch.optim.Optimizer, ids: torch.Tensor, gradient: torch.Tensor) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    optimizer.zero_grad()
    layer(ids).backward(gradient)
    optimizer.step()
    return time.perf_counter() - began


def peak_bytes(name: str, n: int) -> int:
    """What a process with this layer grows by in two steps."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--peak", name, "--rows", str(n)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _print_peak(name: str, n: int) -> None:
    gradient = torch.randn(IDS, D)
    before = most_resident()
    layer, optimizer = LAYERS[name](n)
    for _ in range(2):
        step(layer, optimizer, torch.randint(0, n, (IDS,)), gradient)
    print(most_resident() - before)


def most_resident() -> int:
    """Bytes that this process had in memory at most; getrusage would count those of the process that started it too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three turns instead of seven")
    parser.add_argument("--peak", metavar="LAYER", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.peak:
        return _print_peak(args.peak, args.rows)
    record, verdicts = Recorder("train_step"), []
    ratios: dict[tuple[str, str], float] = {}
    gradient = torch.randn(IDS, D)
    for n, wanted in ((1_000_000, 2.0), (10_000_000, 1.5)):
        names = [name for name in LAYERS if n == 1_000_000 or ("torch SGD" not in name and "dense" not in name)]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for mine, theirs in PAIRS:  # a pair at a time, for the memory
            layers: dict[str, Any] = {name: LAYERS[name](n) for name in (mine, theirs)}
            taken: dict[str, list[float]] = {name: [] for name in layers}
            for turn in range(3 if args.quick else 8):
                for name, (layer, optimizer) in layers.items():
                    took = step(layer, optimizer, torch.randint(0, n, (IDS,)), gradient)
                    if turn:  # the first one makes states and memory
                        taken[name].append(took)
            ratios[mine, theirs] = statistics.median(b / a for a, b in zip(taken[mine], taken[theirs], strict=True))
            for name in taken:
                seconds[name] += taken[name]
            del layers
        for name in names:
            if seconds[name]:
                continue
            layer, optimizer = LAYERS[name](n)
            seconds[name] = [step(layer, optimizer, torch.randint(0, n, (IDS,)), gradient) for _ in range(4)][1:]
        for name in names:
            peak = peak_bytes(name, n)
            took = statistics.median(seconds[name])
            record.row(
                layer=name,
                rows=n,
                dim=D,
                ids=IDS,
                step_ms=round(took * 1e3, 2),
                worst_ms=round(max(seconds[name]) * 1e3, 2),
                peak_bytes=peak,
            )
            print(f"{n:>10,} {name:<34} {took * 1e3:8.1f} ms   peak {peak / 1e6:8.1f} MB", flush=True)
        for mine, theirs in PAIRS:
            verdicts.append((f"{n:,} rows: {theirs} / {mine}", ratios[mine, theirs], wanted))
    print()
    for name, reached, wanted in verdicts:
        print(f"{name:<70} {reached:6.2f} {wanted:6.2f}  {'pass' if reached >= wanted else 'FAIL'}")
        record.row(target=name, reached=round(reached, 3), wanted=wanted, passed=reached >= wanted)
    sys.exit(0 if all(reached >= wanted for _, reached, wanted in verdicts) else 1)


if __name__ == "__main__":
    main()
