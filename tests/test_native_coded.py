"""What only the compiled rows of codes have: instructions, threads, and arguments that never come from this package."""

import os
import subprocess
import sys

import numpy as np
import pytest

from hfh_embed.kernels import backends
from tests.builders import CASES, N, snapshot_of

if "native" not in backends():
    pytest.skip("the compiled kernels are not installed", allow_module_level=True)

from hfh_embed.kernels._native import CodedPart, Trellis

CODED = sorted(case for case in CASES if case.startswith(("trellis", "coded")))
WORST = """
import sys
import numpy as np
from hfh_embed import reference
from tests.builders import CASES, N, snapshot_of
worst = 0.0
for case in sys.argv[1:]:
    table = snapshot_of(*CASES[case], kernels="native")["users"]
    ids = np.arange(N - 300, N)
    truth = reference.rows(table.data, ids)
    worst = max(worst, float((np.abs(table.lookup(ids) - truth) / np.abs(truth).max(axis=1, keepdims=True)).max()))
print(worst)
"""
EMPTY = np.empty(0, dtype=np.float32)
RUNS = np.array([[6, 1, 2]])
VALUES = np.ones((1, 16), dtype=np.float32)
MAP = np.ones((6, 3), dtype=np.float32)


@pytest.mark.parametrize("simd", ["portable", "avx2", "avx512"])
def test_all_instructions_decode_as_the_reference(simd: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORST, *CODED],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HFH_SIMD": simd},
    )
    assert float(done.stdout) < 4e-6


@pytest.mark.parametrize("case", ["trellis", "trellis-coded"])
def test_threads_give_the_same_rows(case: str) -> None:
    table = snapshot_of(*CASES[case], kernels="native")["users"]
    ids = np.random.default_rng(0).integers(0, N, 5_000)
    for dtype in (np.float32, np.float16):
        assert (table.lookup(ids, dtype=dtype, num_threads=3) == table.lookup(ids, dtype=dtype)).all()


@pytest.mark.parametrize(
    ("runs", "state_bits", "values", "norms", "message"),
    [
        (RUNS, 17, VALUES, EMPTY, "state_bits"),
        (RUNS, 4, VALUES[:, :8].copy(), EMPTY, "columns"),
        (np.array([[0, 1, 2]]), 4, VALUES, EMPTY, "out of range"),
        (np.array([[6, 1, 5]]), 4, VALUES, EMPTY, "out of range"),
        (np.array([[6, 2, 2]]), 4, VALUES, EMPTY, "each book"),
        (np.array([[1, 1, 2]]), 4, VALUES, EMPTY, "shorter"),
        (RUNS, 4, VALUES, np.ones(3, dtype=np.float32), "power of two"),
    ],
)
def test_impossible_trellises_are_refused(runs, state_bits: int, values, norms, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trellis(runs, state_bits, values, norms, False)


def test_arrays_that_are_too_short_are_refused() -> None:
    trellis = Trellis(RUNS, 4, VALUES, EMPTY, False)
    chunks, ids, out = np.empty((0, 3), dtype=np.int64), np.zeros(2, dtype=np.int64), np.empty((2, 3), dtype=np.float32)
    part = CodedPart(100, trellis, chunks, EMPTY, MAP, EMPTY)
    codes, none = np.zeros(150, dtype=np.uint8), np.empty(0, dtype=np.uint8)
    assert part.rows(codes, none, ids, out, True, -1, 1) == -1
    with pytest.raises(ValueError, match="too few codes"):
        part.rows(codes[:149].copy(), none, ids, out, True, -1, 1)
    with pytest.raises(ValueError, match="wrong shape"):
        part.rows(codes, none, ids, out[:1].copy(), True, -1, 1)
    with pytest.raises(ValueError, match="wider"):
        CodedPart(100, trellis, chunks, EMPTY, MAP[:5].copy(), EMPTY)
    with pytest.raises(ValueError, match="codebooks"):
        CodedPart(100, None, np.array([[0, 6, 4]]), EMPTY, MAP, EMPTY)
