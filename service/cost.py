"""What a lookup costs, measured once where something is decided by it."""

from __future__ import annotations

import time

import numpy as np

import hfh_embed

__all__ = ["call_s"]


def call_s(table: hfh_embed.Table, ids: int = 1, tries: int = 5) -> float:
    """Seconds of a kernel call for the first ``ids`` ids, at best."""
    wanted, best = np.arange(ids, dtype=np.int64) % table.num_embeddings, float("inf")
    for _ in range(tries):
        began = time.perf_counter()
        table.lookup(wanted)
        best = min(best, time.perf_counter() - began)
    return best
