"""What only the compiled kernels have: chosen instructions, threads, and arguments that never come from this package."""

import os
import subprocess
import sys

import numpy as np
import pytest

from hfh_embed.kernels import backends
from tests.builders import CASES, N, snapshot_of

pytestmark = pytest.mark.skipif("native" not in backends(), reason="the compiled kernels are not installed")

LINES = ["line-dim-1", "line-dim-64", "line-dim-130", "words-1", "words-16", "words-8", "padding-zero"]
ROWS = """
import hashlib, sys
import numpy as np
from hfh_embed.kernels.native_backend import SIMD
from tests.builders import CASES, N, snapshot_of
digest = hashlib.sha256()
for case in sys.argv[1:]:
    table = snapshot_of(*CASES[case], kernels="native")["users"]
    for dtype in (np.float32, np.float16):
        digest.update(table.lookup(np.arange(N), dtype=dtype).tobytes())
print(SIMD, digest.hexdigest())
"""


def _run(**environment: str) -> tuple[str, str]:
    command = [sys.executable, "-c", ROWS, *LINES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    simd, digest = done.stdout.split()
    return simd, digest


def test_all_instructions_give_the_same_bits() -> None:
    portable = _run(HFH_SIMD="portable")
    assert portable[0] == "portable"
    assert {_run(HFH_SIMD=name)[1] for name in ("avx2", "avx512", "")} == {portable[1]}


@pytest.mark.parametrize("case", LINES)
@pytest.mark.parametrize("threads", [2, 3, 64])
def test_any_number_of_threads_gives_the_same_rows(case: str, threads: int) -> None:
    table = snapshot_of(*CASES[case], kernels="native")["users"]
    ids = np.random.default_rng(0).integers(0, N, 5_003)
    assert table.lookup(ids, num_threads=threads).tobytes() == table.lookup(ids).tobytes()


@pytest.mark.parametrize("exponent", range(-30, 20))
def test_float16_is_rounded_as_numpy_rounds(exponent: int) -> None:
    snapshot = snapshot_of(*CASES["line-dim-64"], kernels="native")
    arrays = dict(snapshot.arrays) | {"table/users/shared.scale": np.float32([1.1 * 2.0**exponent])}
    table = type(snapshot)(snapshot.spec, arrays, kernels="native")["users"]
    with np.errstate(over="ignore"):
        expected = table.lookup(np.arange(300)).astype(np.float16)
    assert table.lookup(np.arange(300), dtype=np.float16).tobytes() == expected.tobytes()


def _part(**changes: object):
    from hfh_embed.kernels._native import SharedPart

    facts: dict[str, object] = {"key": 1, "slots": 5120, "bits": 1, "dim": 64, "num_hashes": 8, "chunk_size": 64}
    return SharedPart(**(facts | {"locality": 3, "lines": 1, "signs": True} | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 3},
        {"slots": 0},
        {"slots": 2**60},
        {"dim": 0},
        {"dim": 2**40},
        {"num_hashes": 0},
        {"num_hashes": 100},
        {"chunk_size": 0},
        {"chunk_size": 48},
        {"chunk_size": 256},
        {"slots": 100},
        {"locality": 4},
        {"locality": -1},
        {"locality": 2, "chunk_size": 513},
        {"locality": 0, "chunk_size": 6000},
        {"lines": 0},
    ],
)
def test_facts_that_would_leave_the_pool_are_refused(changes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        _part(**changes)


@pytest.mark.parametrize("locality", range(4))
def test_a_pool_or_an_output_of_the_wrong_size_is_refused(locality: int) -> None:
    part = _part(locality=locality, chunk_size=32)
    pool, ids, out = np.zeros(640, np.uint8), np.arange(3), np.empty((3, 64), np.float32)
    part.sums(pool, 1.0, ids, out)
    wrong = [
        (pool[:-1], ids, out),
        (pool, ids[:2], out),
        (pool, ids, out[:, :63].copy()),
        (pool, ids.astype(np.int32), out),
        (pool, ids, out.astype(np.float64)),
        (pool, ids, np.asfortranarray(out)),
        (pool, np.arange(6)[::2], out),
    ]
    for arguments in wrong:
        with pytest.raises((TypeError, ValueError)):
            part.sums(arguments[0], 1.0, *arguments[1:])
    read_only = out.copy()
    read_only.flags.writeable = False
    with pytest.raises((TypeError, ValueError)):
        part.sums(pool, 1.0, ids, read_only)
