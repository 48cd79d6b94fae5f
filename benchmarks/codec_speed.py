"""How fast rows come back from codes, beside faiss' reconstruct_batch of the product quantiser of equal bytes, and how fast they are found.

Run by benchmarks.codec --speed, on one thread. Ours and faiss' take turns within one run; medians are over the rounds. Decoding of a
code does not depend on what it says, so faiss' codebooks are trained on few rows.
"""

from __future__ import annotations

import time

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.record import Recorder
from benchmarks.trained import trained_table
from hfh_embed.codec import compress
from hfh_embed.codec.choice import choose
from hfh_embed.codec.coded import Sample
from hfh_embed.codec.peers import product_parts
from hfh_embed.spec import PrivateSpec, TableSpec

F32 = npt.NDArray[np.float32]
RATIO = 32
BATCHES = (64, 1024)
ROUNDS = 60
DECODED = ("towers", "minilm")
LIMITS_US = {64: 0.15, 384: 1.5}
FASTER_THAN_FAISS = 3
ENCODED_ROWS = 60_000
LEAST_ENCODED = 200_000
TRAINED_ON = 4_096


def measure_speed(recorder: Recorder) -> list[tuple[str, bool]]:
    """Writes the rows and returns each target with whether it was met."""
    faiss.omp_set_num_threads(1)
    outcomes = []
    for name in DECODED:
        recorder.drop(table=name, method="decode")
        rows = np.ascontiguousarray(trained_table(name)[:100_000], dtype=np.float32)
        for batch, times in decode_times(rows).items():
            recorder.row(table=name, ratio=RATIO, method="decode", batch=batch, us_per_row=times)
            limit, ours = LIMITS_US[rows.shape[1]], times["ours"]
            what = f"{name} {RATIO}x, batch {batch}, D = {rows.shape[1]}"
            raw = f", {times['raw']:.3f} raw" if "raw" in times else ""
            outcomes.append((f"{what}: {ours:.3f} us a row{raw}, at most {limit}", ours <= limit))
            faster, than_opq = times["faiss"] / ours, times["faiss OPQ"] / ours
            outcomes.append(
                (
                    f"{what}: {faster:.2f} times as fast as faiss PQ, at least {FASTER_THAN_FAISS} "
                    f"({than_opq:.2f} times OPQ, which has a rotation too)",
                    faster >= FASTER_THAN_FAISS,
                )
            )
    recorder.drop(table="towers", method="encode")
    rate = encode_rate(np.ascontiguousarray(trained_table("towers"), dtype=np.float32))
    recorder.row(table="towers", ratio=RATIO, method="encode", rows_per_s=round(rate))
    outcomes.append(
        (f"towers {RATIO}x: {rate:,.0f} rows a second encoded, at least {LEAST_ENCODED:,}", rate >= LEAST_ENCODED)
    )
    return outcomes


def decode_times(rows: F32) -> dict[int, dict[str, float]]:
    """For each batch the median microseconds a row: ours, ours before the last rotation where there is one (raw), and faiss' PQ and OPQ."""
    ours = compress(rows, ratio=RATIO)["table"]
    n, dim = rows.shape
    parts = product_parts(n, dim, rows.nbytes // RATIO)
    wide = np.ascontiguousarray(np.pad(rows, ((0, 0), (0, -dim % parts))))
    index = faiss.IndexPQ(wide.shape[1], parts, 8)
    index.train(wide[:TRAINED_ON])
    index.add(wide)
    rotation = faiss.OPQMatrix(wide.shape[1], parts)
    rotation.niter = 2
    rotated = faiss.IndexPreTransform(rotation, faiss.IndexPQ(wide.shape[1], parts, 8))
    rotated.train(wide[:TRAINED_ON])
    rotated.add(wide)
    generator = np.random.default_rng(0)
    found = {}
    for batch in BATCHES:
        times: dict[str, list[float]] = {"ours": [], "faiss": [], "faiss OPQ": []}
        out = np.empty((batch, dim), dtype=np.float32)
        if ours.raw_dim is not None:
            times["raw"], before = [], np.empty((batch, ours.raw_dim), dtype=np.float32)
        calls = max(1, 1024 // batch)
        for round_number in range(ROUNDS):
            ids = generator.integers(0, n, (calls, batch))
            began = time.perf_counter()
            for some in ids:
                ours.lookup(some, out=out)
            times["ours"].append(time.perf_counter() - began)
            if ours.raw_dim is not None:
                began = time.perf_counter()
                for some in ids:
                    ours.lookup(some, out=before, raw=True)
                times["raw"].append(time.perf_counter() - began)
            peers = [("faiss", index)]
            if round_number < ROUNDS // 4:  # a tenth of the speed: its rounds would be most of the run
                peers.append(("faiss OPQ", rotated))
            for name, peer in peers:
                began = time.perf_counter()
                for some in ids:
                    peer.reconstruct_batch(some)
                times[name].append(time.perf_counter() - began)
        found[batch] = {name: float(np.median(taken)) / (calls * batch) * 1e6 for name, taken in times.items()}
    return found


def encode_rate(rows: F32) -> float:
    """Rows a second on one thread of the form chosen for all of these rows, the best of three."""
    n, dim = rows.shape
    picked = np.random.default_rng(0).choice(n, ENCODED_ROWS, replace=False)
    sample = Sample(np.ascontiguousarray(rows[picked]), np.ones(ENCODED_ROWS))
    blank = TableSpec("table", n, dim, private=PrivateSpec(dim, 32))
    none = np.empty(0, dtype=np.int64)
    choice = choose(
        blank,
        rows.nbytes // RATIO,
        sample,
        none,
        metric="cosine",
        threads=1,
        seed=0,
        tell=lambda done, total, what: None,
    )
    assert choice is not None
    best = np.inf
    for _ in range(3):
        began = time.perf_counter()
        choice.fit.encode(sample.rows)
        best = min(best, time.perf_counter() - began)
    return ENCODED_ROWS / best
