"""Which limit of the machine holds a lookup or a bag: each beside the reads, the writes and the arithmetic that it is made of.

    OMP_NUM_THREADS=1 python -m benchmarks.roofline

All in one run and in turns, one thread, nanoseconds an id, medians of seven turns:

- ``ours``: the compressed table of 10 M ids x 64 at ratio 100, uniform ids.
- ``cached``: the same form and calls on a table so small that its pool stays in the L1 or L2 cache: arithmetic, hashing and the output.
- ``read``: the C++ gather of one random 64-byte line an id out of as many bytes as ours has, into an array that stays in the cache.
- ``write``: a new array of the output's shape, filled with one value.
- ``peer``: torch on the dense table. ``budget`` is that divided by the target: what ours may take.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.lookup import D, N, one_table
from benchmarks.record import Recorder
from hfh_embed.budget import Form
from hfh_embed.kernels._native import SIMD, gather
from hfh_embed.lookup import Table
from hfh_embed.verbs.bench import dense_table, interleaved

REPEATS, SMALL, RATIO = 7, 40_000, 100
Ids = list[np.ndarray[Any, np.dtype[np.int64]]]


def drawn(n: int, batch: int) -> Ids:
    """Two million ids in batches: the dense rows of a round fit no cache."""
    return list(np.random.default_rng(0).integers(0, n, (max(8, 2**21 // batch), batch)))


def compare(
    recorder: Recorder,
    case: str,
    tables: tuple[Table, Table],
    call: Callable[[Table, Any], object],
    peer: Callable[[Any], object],
    shape: tuple[int, int],
    batch: int,
    target: float,
) -> None:
    large, small = tables
    asked, few = drawn(N, batch), drawn(SMALL, batch)
    lines = dense_table(N * D * 4 // RATIO // 64, 16)
    places, line_out = drawn(len(lines), batch), np.empty((batch, 16), dtype=np.float32)
    tensors = [torch.from_numpy(ids) for ids in asked]
    turn = iter(range(10**12))
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: call(large, asked[next(turn) % len(asked)]),
        "cached": lambda: call(small, few[next(turn) % len(few)]),
        "read": lambda: gather(lines, places[next(turn) % len(places)], line_out),
        "write": lambda: np.full(shape, 0.5, dtype=np.float32),
        "peer": lambda: peer(tensors[next(turn) % len(tensors)]),
    }
    times = {
        name: statistics.median(seconds) / batch * 1e9 for name, seconds in interleaved(contenders, REPEATS).items()
    }
    figures = {f"{name}_ns": round(value, 2) for name, value in times.items()}
    row = recorder.row(
        case=case, simd=SIMD, batch=batch, target=target, **figures, budget_ns=round(times["peer"] / target, 2)
    )
    print(f"{case:<34}", *(f"{name} {row[name]:g}" for name in (*figures, "budget_ns")), flush=True)


def main() -> None:
    torch.set_num_threads(1)
    recorder = Recorder("roofline")
    weight = torch.empty(N, D).fill_(0.5)
    line = one_table(N, D, RATIO), one_table(SMALL, D, RATIO)
    form = Form(latent_dim=16, private_dim=8, private_bits=1)
    private = one_table(N, D, RATIO, form), one_table(SMALL, D, RATIO, form)
    for case, tables, target in (("line", line, 5.0), ("8 private bits, map 16 -> 64", private, 2.5)):
        for batch in (1_024, 16_384):
            compare(
                recorder,
                f"{case}, {batch}",
                tables,
                lambda table, ids: table.lookup(ids),
                lambda ids: F.embedding(ids, weight),
                (batch, D),
                batch,
                target,
            )
    for size in (1, 5):
        count = 2_048 * size
        offsets = np.arange(2_048, dtype=np.int64) * size
        weights = np.random.default_rng(1).normal(size=count).astype(np.float32)
        starts, theirs = torch.from_numpy(offsets), torch.from_numpy(weights)
        for mode, own, other in (("sum", None, None), ("weighted", weights, theirs)):
            compare(
                recorder,
                f"bag {mode}, {size} ids a bag",
                line,
                lambda table, ids, own=own, offsets=offsets: table.bag(
                    ids, offsets, mode="sum", per_sample_weights=own
                ),  # type: ignore[misc]
                lambda ids, other=other, starts=starts: F.embedding_bag(  # type: ignore[misc]
                    ids, weight, starts, mode="sum", per_sample_weights=other
                ),
                (2_048, D),
                count,
                3.0,
            )


if __name__ == "__main__":
    main()
