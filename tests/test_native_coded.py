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

from hfh_embed.kernels._native import CodedPart, StageSearch, Trellis

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
STAGES = """
import sys
import numpy as np
from hfh_embed.codec.codebooks import Search, _beam
generator = np.random.default_rng(0)
rows = generator.normal(size=(77, 37)).astype(np.float32)
books = [generator.normal(scale=0.8**turn, size=(256, 37)).astype(np.float32) for turn in range(4)]
beam = int(sys.argv[1])
print((Search(books, beam, 2).codes(rows) == _beam(rows, books, beam)).all(axis=1).mean())
"""
EMPTY = np.empty(0, dtype=np.float32)
RUNS = np.array([[6, 1, 2]])
VALUES = np.ones((1, 16), dtype=np.float32)
MAP = np.ones((6, 3), dtype=np.float32)


@pytest.mark.parametrize("simd", ["portable", "avx2", "avx512", ""])
def test_all_instructions_decode_as_the_reference(simd: str) -> None:
    """Without HFH_SIMD tiles are used where the processor has them."""
    environment = {key: value for key, value in os.environ.items() if key != "HFH_SIMD"}
    done = subprocess.run(
        [sys.executable, "-c", WORST, *CODED],
        capture_output=True,
        text=True,
        check=True,
        env=environment | ({"HFH_SIMD": simd} if simd else {}),
    )
    assert float(done.stdout) < 4e-6


@pytest.mark.parametrize("case", ["trellis", "trellis-coded"])
def test_threads_give_the_same_rows(case: str) -> None:
    table = snapshot_of(*CASES[case], kernels="native")["users"]
    ids = np.random.default_rng(0).integers(0, N, 5_000)
    for dtype in (np.float32, np.float16):
        assert (table.lookup(ids, dtype=dtype, num_threads=3) == table.lookup(ids, dtype=dtype)).all()


@pytest.mark.parametrize("simd", ["portable", "avx2", "avx512", ""])
@pytest.mark.parametrize("beam", [1, 6])
def test_all_instructions_find_the_stages_that_numpy_finds(simd: str, beam: int) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HFH_SIMD"}
    done = subprocess.run(
        [sys.executable, "-c", STAGES, str(beam)],
        capture_output=True,
        text=True,
        check=True,
        env=environment | ({"HFH_SIMD": simd} if simd else {}),
    )
    assert float(done.stdout) > 0.99  # but for codes that are as near


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


def _part(
    codes: np.ndarray, trellis: Trellis | None, map_: np.ndarray = MAP, chunks: np.ndarray | None = None
) -> CodedPart:
    none = np.empty(0, dtype=np.uint8)
    chunks = np.empty((0, 3), dtype=np.int64) if chunks is None else chunks
    return CodedPart(100, trellis, codes, chunks, EMPTY, none, map_, EMPTY, -1, True)


def test_searches_whose_sizes_do_not_fit_are_refused() -> None:
    books = np.zeros((512, 6), dtype=np.float32)
    with pytest.raises(ValueError, match="256 centroids"):
        StageSearch(books[:300].copy(), np.zeros((300, 300), dtype=np.float32))
    with pytest.raises(ValueError, match="for each centroid"):
        StageSearch(books, np.zeros((512, 511), dtype=np.float32))
    search, rows, codes = StageSearch(books, books @ books.T), books[:5], np.empty((5, 2), dtype=np.uint8)
    for wrong in (
        (rows[:, :5].copy(), 6, codes),
        (rows, 6, codes[:4]),
        (rows, 6, codes[:, :1].copy()),
        (rows, 17, codes),
    ):
        with pytest.raises(ValueError, match=r"wrong shape|beam"):
            search.search(*wrong, 1)


def test_arrays_that_are_too_short_are_refused() -> None:
    trellis = Trellis(RUNS, 4, VALUES, EMPTY, False)
    ids, out = np.zeros(2, dtype=np.int64), np.empty((2, 3), dtype=np.float32)
    codes = np.zeros(150, dtype=np.uint8)
    part = _part(codes, trellis)
    assert part.rows(ids, out) == -1
    with pytest.raises(ValueError, match="too few codes"):
        _part(codes[:149].copy(), trellis)
    with pytest.raises(ValueError, match="wrong shape"):
        part.rows(ids, out[:1].copy())
    with pytest.raises(ValueError, match="wrong shape"):
        part.add(ids, np.zeros((2, 5), dtype=np.float32), out)
    with pytest.raises(ValueError, match="wider"):
        _part(codes, trellis, MAP[:5].copy())
    with pytest.raises(ValueError, match="codebooks"):
        _part(codes, None, chunks=np.array([[0, 6, 4]]))
    with pytest.raises(ValueError, match="too few chunk codes"):
        CodedPart(
            100,
            None,
            codes,
            np.array([[0, 6, 4]]),
            np.ones(96, dtype=np.float32),
            codes[:99].copy(),
            MAP,
            EMPTY,
            -1,
            True,
        )
