"""Nearest rows over the compressed form, 1 M x 64 at ratio 100, against a scan of the dense table.

    python -m benchmarks.search

Milliseconds are the best of several passes. The dense scan is one matrix product over the 256 MB table and a partial sort: what a
user would write in numpy, with the memory that the compressed form saves. `tile` rows try other tile sizes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from benchmarks.record import Recorder
from hfh_embed import search
from hfh_embed.hashing import table_key
from hfh_embed.layout import SnapshotSpec
from hfh_embed.lookup import Table
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import PoolSpec, SharedSpec, TableSpec

F32 = npt.NDArray[np.float32]
N, D, RATIO, K = 1_000_000, 64, 100, 10
TARGET_MS = 100


def plain_line_form() -> Table:
    """The default form with random bits in its pool: what they are does not change the work."""
    pool = PoolSpec("pool", N * D * 32 // RATIO // 512 * 512, bits=1)
    spec = SnapshotSpec((TableSpec("t", N, D, shared=SharedSpec("pool", D, table_key(pool.seed, "t"))),), (pool,))
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.integers(0, 256, array.shape, dtype=np.uint8)
        if array.dtype == np.uint8
        else np.full(array.shape, 0.1, dtype=array.dtype)
        for name, array in spec.arrays().items()
    }
    return Snapshot(spec, arrays)["t"]


def best_ms(call: Callable[[], object], passes: int) -> float:
    """Of several passes."""
    found = []
    for _ in range(passes):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return min(found) * 1e3


def dense_search(rows: F32, queries: F32) -> npt.NDArray[np.int64]:
    """The K largest dot products, unsorted."""
    scores = queries @ rows.T
    return np.argpartition(-scores, K, axis=1)[:, :K]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--passes", type=int, default=5)
    passes = parser.parse_args().passes
    table, recorder = plain_line_form(), Recorder("search")
    generator = np.random.default_rng(1)
    dense = table.lookup(np.arange(N))
    for count in (1, 8, 64, 128):
        queries = generator.normal(size=(count, D)).astype(np.float32)
        reference = np.sort(dense_search(dense, queries), axis=1)
        assert np.array_equal(np.sort(table.search(queries, K)[0], axis=1), reference)
        for metric in ("dot", "cosine", "l2") if count in (1, 64) else ("dot",):
            ms = best_ms(lambda queries=queries, metric=metric: table.search(queries, K, metric=metric), passes)
            recorder.row(
                what="compressed", metric=metric, queries=count, ms=round(ms, 2), ms_a_query=round(ms / count, 3)
            )
            note = ("pass" if ms < TARGET_MS else "FAIL") + f" (target {TARGET_MS} ms)" if count == 1 else ""
            print(
                f"compressed {metric:7} {count:4} queries {ms:8.1f} ms {ms / count:8.2f} ms a query  {note}", flush=True
            )
        ms = best_ms(lambda queries=queries: dense_search(dense, queries), min(passes, 3))
        recorder.row(what="dense", metric="dot", queries=count, ms=round(ms, 2), ms_a_query=round(ms / count, 3))
        print(f"dense      dot     {count:4} queries {ms:8.1f} ms {ms / count:8.2f} ms a query", flush=True)
    for kib in (64, 128, 256, 512, 1024, 2048):
        search.TILE_BYTES = kib * 1024
        for count in (1, 64):
            queries = generator.normal(size=(count, D)).astype(np.float32)
            ms = best_ms(lambda queries=queries: table.search(queries, K), passes)
            recorder.row(what="tile", metric="dot", queries=count, tile_kib=kib, ms=round(ms, 2))
            print(f"tile {kib:5} KiB     {count:4} queries {ms:8.1f} ms", flush=True)


if __name__ == "__main__":
    main()
