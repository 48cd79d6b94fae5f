"""What only the compiled kernels have: chosen instructions, threads, and memory that they share with their caller."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from hfh_embed import reference
from hfh_embed.errors import InputError, UnknownIdError
from hfh_embed.hashing import addresses as plain_addresses
from hfh_embed.kernels import backends
from hfh_embed.spec import ExactSpec, PrivateRole, PrivateSpec, Unknown
from tests.builders import BIT_EXACT, CASES, N, snapshot_of

pytestmark = pytest.mark.skipif("native" not in backends(), reason="the compiled kernels are not installed")

SIMD = ("portable", "avx2", "avx512")
SANITIZED = "HFH_SANITIZED" in os.environ  # everything is some ten times slower, and runs once for each instruction set
LINES = ["line-dim-1", "line-dim-64", "line-dim-130", "words-1", "words-16", "words-8", "padding-zero"]
LINES += ["line-16-words", "line-16-words-dim-27", "line-16-words-unsigned"]
EVERY_STAGE = [
    "private",
    "private-row-scale",
    "exact",
    "map-4-bias",
    "map-16-words",
    "beside",
    "residual",
    "mlp",
    "weigh",
]
EVERY_STAGE += ["free-16"]
ROWS = """
import hashlib, json, sys
import numpy as np
from hfh_embed.kernels.native_backend import SIMD
from hfh_embed.spec import Unknown
from tests.builders import CASES, N, snapshot_of
digests = {"simd": SIMD}
for case in sys.argv[1:]:
    table = snapshot_of(*CASES[case], kernels="native")["users"]
    ids = np.arange(N)
    if table.unknown is not Unknown.ERROR:
        ids = np.concatenate((ids, [N, 2**40, 2**63 - 1]))
    rows = [table.lookup(ids, dtype=dtype).tobytes() for dtype in (np.float32, np.float16)]
    bags = [table.bag(ids[:1000].reshape(-1, 4), mode=mode).tobytes() for mode in ("sum", "max")]
    digests[case] = hashlib.sha256(b"".join(rows + bags)).hexdigest()
print(json.dumps(digests))
"""


def _run(simd: str, *command: str) -> str:
    environment = os.environ | {"HFH_SIMD": simd}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(SANITIZED, reason="processes of their own")
def test_all_instructions_give_the_same_bits_for_few_bit_sums() -> None:
    found = {simd: json.loads(_run(simd, "-c", ROWS, *sorted(BIT_EXACT))) for simd in (*SIMD, "")}
    assert found["portable"].pop("simd") == "portable"
    assert found["avx2"].pop("simd") in ("avx2", "portable")
    for digests in found.values():
        digests.pop("simd", None)
        assert digests == found["portable"]


@pytest.mark.skipif(SANITIZED, reason="processes of their own")
@pytest.mark.parametrize("simd", ["portable", "avx2"])
def test_fewer_instructions_pass_the_suite_of_all_backends(simd: str) -> None:
    said = _run(simd, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "native", "tests/test_kernels.py")
    assert "passed" in said and "failed" not in said


@pytest.mark.parametrize("case", [name for name, (table, pool) in CASES.items() if table.shared is not None])
def test_addresses_equal_the_definition(case: str) -> None:
    from hfh_embed.kernels.native_backend import addresses

    table, pool = CASES[case]
    ids = np.array([0, 1, N - 1, 2**31, 2**63 - 1])
    for mine, plain in zip(addresses(table.shared, pool, ids), plain_addresses(table.shared, pool, ids), strict=True):
        assert np.array_equal(mine, np.broadcast_to(plain, mine.shape))


@pytest.mark.parametrize("case", LINES + EVERY_STAGE)
@pytest.mark.parametrize("threads", [2, 3, 64])
def test_any_number_of_threads_gives_the_same_rows(case: str, threads: int) -> None:
    table = snapshot_of(*CASES[case], kernels="native")["users"]
    ids = np.random.default_rng(0).integers(0, N, 5_003)
    assert table.lookup(ids, num_threads=threads).tobytes() == table.lookup(ids).tobytes()
    assert table.bag(ids, [0, 5, 5, 4_000], num_threads=threads).tobytes() == table.bag(ids, [0, 5, 5, 4_000]).tobytes()


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("case", [*LINES, "private", "reconstruct"])
def test_more_ids_than_a_table_has_give_the_same_rows_and_bags_as_few_at_a_time(case: str, outside: bool) -> None:
    table = snapshot_of(*CASES[case], kernels="native")["users"]
    ids = np.random.default_rng(4).integers(0, N, 100 * 41)
    if outside and table.spec.unknown is not Unknown.ERROR:
        ids[[0, 77, 4_000]] = N, 2**40, 2**63 - 1
    weights = np.random.default_rng(5).normal(size=len(ids)).astype(np.float32)
    for dtype in (np.float32, np.float16):
        few = np.concatenate([table.lookup(some, dtype=dtype) for some in np.split(ids, 41)])
        assert table.lookup(ids, dtype=dtype).tobytes() == few.tobytes()
    offsets = np.array([0, 1, 1, 8, 60])
    for per_sample in (None, weights):
        some = np.split(ids, 41), np.split(weights, 41)
        few = [
            table.bag(own, offsets, mode="sum", per_sample_weights=None if per_sample is None else factors)
            for own, factors in zip(*some, strict=True)
        ]
        starts = (100 * np.arange(41)[:, None] + offsets).reshape(-1)
        many = table.bag(ids, starts, mode="sum", per_sample_weights=per_sample)
        assert many.tobytes() == np.concatenate(few).tobytes()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("case", LINES + EVERY_STAGE)
def test_bags_of_every_stage_equal_the_reference(case: str, mode: str) -> None:
    table = snapshot_of(*CASES[case], kernels="native")["users"]
    ids = np.random.default_rng(1).integers(0, N, 200)
    ids[[0, 3]] = table.spec.padding_id or 7
    offsets = np.array([0, 1, 1, 34, 35, 99, 200])  # blocks of 32 rows end within bags; the first may have only padding
    weights = np.random.default_rng(2).normal(size=200).astype(np.float32) if mode == "sum" else None
    truth = reference.bag(table.data, ids, offsets, mode, weights, include_last_offset=True)
    options = {"mode": mode, "include_last_offset": True, "per_sample_weights": weights}
    largest = np.abs(reference.rows(table.data, ids)).max()
    assert np.abs(table.bag(ids, offsets, **options) - truth).max() <= 4e-6 * 40 * largest
    narrow = table.bag(ids, offsets, dtype=np.float16, **options)
    assert narrow.tobytes() == table.bag(ids, offsets, **options).astype(np.float16).tobytes()


@pytest.mark.parametrize("case", LINES + EVERY_STAGE)
def test_float16_rows_of_every_stage_are_the_rounded_float32_ones(case: str) -> None:
    table = snapshot_of(*CASES[case], kernels="native")["users"]
    assert (
        table.lookup(np.arange(N), dtype=np.float16).tobytes()
        == table.lookup(np.arange(N)).astype(np.float16).tobytes()
    )


@pytest.mark.parametrize("exponent", range(-30, 20))
def test_float16_is_rounded_as_numpy_rounds(exponent: int) -> None:
    snapshot = snapshot_of(*CASES["line-dim-64"], kernels="native")
    arrays = dict(snapshot.arrays) | {"table/users/shared.scale": np.float32([1.1 * 2.0**exponent])}
    table = type(snapshot)(snapshot.spec, arrays, kernels="native")["users"]
    with np.errstate(over="ignore"):
        expected = table.lookup(np.arange(300)).astype(np.float16)
    assert table.lookup(np.arange(300), dtype=np.float16).tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3), (2, 0, 3), (2, 1, 3, 1)])
@pytest.mark.parametrize("case", ["line-dim-64", "private", "map"])
def test_ids_of_any_shape_and_layout_give_the_same_rows(case: str, shape: tuple[int, ...]) -> None:
    table = snapshot_of(*CASES[case], kernels="native")["users"]
    ids = np.asarray(np.random.default_rng(0).integers(0, N, shape))
    truth = reference.rows(table.data, ids.reshape(-1)).reshape(*shape, table.embedding_dim)
    memory = np.zeros(8 * ids.size + 1, np.uint8)
    misaligned = memory[1:].view(np.int64).reshape(shape)
    misaligned[...] = ids
    unusual = {
        "longlong": ids.astype(np.longlong),
        "uint64": ids.astype(np.uint64),
        "int16": ids.astype(np.int16),
        "big-endian": ids.astype(">i8"),
        "misaligned": misaligned,
        "fortran": np.array(ids, order="F"),
        "backwards": ids[..., ::-1] if shape else ids,
    }
    if ids.size:
        unusual["list"] = ids.tolist()
    for name, given in unusual.items():
        expected = truth[..., ::-1, :] if name == "backwards" and shape else truth
        rows = table.lookup(given)
        assert rows.shape == expected.shape and np.allclose(rows, expected, rtol=0, atol=1e-4), name
    if len(shape) == 1:
        assert np.allclose(table.bag(misaligned, [0] if shape[0] else [], mode="sum"), truth.sum(0), atol=1e-3)


def test_weights_may_lie_anywhere() -> None:
    table = snapshot_of(*CASES["words-1"], kernels="native")["users"]
    weights = np.zeros(4 * 3 + 1, np.uint8)[1:].view(np.float32)
    weights[...] = [1, -2, 0.5]
    assert table.bag([1, 2, 3], [0], mode="sum", per_sample_weights=weights).tobytes() == (
        table.bag([1, 2, 3], [0], mode="sum", per_sample_weights=weights.copy()).tobytes()
    )


@pytest.mark.parametrize("exact", [None, ExactSpec(17, 4)])
@pytest.mark.parametrize("unknown", [Unknown.RECONSTRUCT, Unknown.ZERO, Unknown.ERROR])
def test_a_table_may_have_as_many_ids_as_there_are(unknown: Unknown, exact: ExactSpec | None) -> None:
    table, pool = CASES["line-dim-64"]
    own = table.replace(num_embeddings=2**63 - 1, unknown=unknown, exact=None)
    snapshot = snapshot_of(own, pool, kernels="native")
    if exact is not None:  # the builder draws exact ids from a list of all
        few = table.replace(unknown=unknown, exact=exact)
        arrays = dict(snapshot_of(few, pool).arrays)
        ids = np.sort(np.random.default_rng(0).integers(0, 2**63 - 1, 16))
        arrays["table/users/exact.ids"] = np.append(ids, 2**63 - 2)
        spec = replace(snapshot.spec, tables=(own.replace(exact=exact),))
        snapshot = type(snapshot)(spec, arrays, kernels="native")
    wide = snapshot["users"]
    ids = np.array([0, 5, 2**31, 2**32, 2**62, 2**63 - 2])
    assert np.abs(wide.lookup(ids) - reference.rows(wide.data, ids)).max() < 1e-4
    if unknown is Unknown.ERROR:
        with pytest.raises(UnknownIdError, match=str(2**63 - 1)):
            wide.lookup([2**63 - 1])
    else:
        last = np.array([2**63 - 1])
        assert np.abs(wide.lookup(last) - reference.rows(wide.data, last)).max() < 1e-4
    with pytest.raises(InputError, match="too large"):
        wide.lookup(np.array([2**63], dtype=np.uint64))


@pytest.mark.parametrize("ids", [[5, 3, 900, 1, 1], [7, 7, 7, 7, 7], [2**32 - 1] * 5, [0, 0, N, N + 1, 2**31]])
def test_exact_ids_in_disorder_still_give_rows(ids: list[int]) -> None:
    table, pool = CASES["exact"]
    snapshot = snapshot_of(table.replace(exact=ExactSpec(5, 4)), pool)
    arrays = dict(snapshot.arrays) | {"table/users/exact.ids": np.array(ids, np.uint32)}
    broken = type(snapshot)(snapshot.spec, arrays, kernels="native")["users"]
    plain = type(snapshot)(snapshot.spec, dict(snapshot.arrays), kernels="native")["users"]
    rows, whole = broken.lookup(np.arange(N)), np.isin(np.arange(N), [*ids, *snapshot.arrays["table/users/exact.ids"]])
    assert rows[~whole].tobytes() == plain.lookup(np.arange(N))[~whole].tobytes()


@pytest.mark.parametrize("case", ["line-dim-64", "private", "exact", "weigh", "padding-zero"])
def test_ids_may_be_overwritten_during_a_lookup(case: str) -> None:
    table = snapshot_of(*CASES[case], kernels="native")["users"]
    valid = np.random.default_rng(0).integers(0, N, 200_000 // (20 if SANITIZED else 1))
    ids, stop = valid.copy(), threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            for wrong in (-1, N, 2**63 - 1, -(2**63)):
                ids[...] = wrong
                ids[...] = valid

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        for _ in range(10):
            for call in (table.lookup, lambda given: table.bag(given, [0, 10, 4_000], mode="sum")):
                try:
                    call(ids)
                except UnknownIdError:
                    continue  # seen while it was wrong
    finally:
        stop.set()
        disturber.join()
    ids[...] = valid
    assert table.lookup(ids).tobytes() == table.lookup(valid).tobytes()


def test_bounds_may_be_overwritten_during_a_lookup() -> None:
    table = snapshot_of(*CASES["line-dim-64"], kernels="native")["users"]
    ids, stop = np.arange(N), threading.Event()
    bounds = np.linspace(0, N, 500).astype(np.int64)
    valid = bounds.copy()
    truth = table.bag(ids, bounds, mode="sum", include_last_offset=True)

    def disturb() -> None:
        while not stop.is_set():
            bounds[1:-1] = 2**60
            bounds[...] = valid

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        for _ in range(200):
            try:
                table.bag(ids, bounds, mode="sum", include_last_offset=True)
            except (ValueError, InputError):
                continue
    finally:
        stop.set()
        disturber.join()
    bounds[...] = valid
    assert table.bag(ids, bounds, mode="sum", include_last_offset=True).tobytes() == truth.tobytes()


@pytest.mark.parametrize("case", ["line-dim-64", "exact", "residual"])
def test_many_threads_at_once_get_the_same_rows(case: str) -> None:
    table = snapshot_of(*CASES[case], kernels="native")["users"]
    ids = np.random.default_rng(0).integers(0, N, 3_000)
    with ThreadPoolExecutor(16) as pool:  # the first lookups of all make the directory of exact rows
        found = list(pool.map(lambda threads: table.lookup(ids, num_threads=threads).tobytes(), [1, 2, 3, 4] * 10))
    assert set(found) == {table.lookup(ids).tobytes()}


@pytest.mark.skipif(SANITIZED, reason="the sanitizer's own threads do not survive a fork")
def test_processes_forked_while_threads_look_rows_up_go_on() -> None:
    table = snapshot_of(*CASES["residual"], kernels="native")["users"]
    ids, stop = np.arange(N).repeat(20), threading.Event()
    truth = table.lookup(ids)

    def busy() -> None:
        while not stop.is_set():
            table.lookup(ids, num_threads=2)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    context = multiprocessing.get_context("fork")
    try:
        for _ in range(5):
            child = context.Process(
                target=lambda: os._exit(0 if (table.lookup(ids, num_threads=4) == truth).all() else 1)
            )
            child.start()
            child.join(30)
            assert child.exitcode == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_weighing_part_has_a_weight_for_every_hash_function() -> None:
    table, pool = CASES["words-1"]
    weighed = table.replace(private=PrivateSpec(4, 32, PrivateRole.WEIGH), unknown=Unknown.RECONSTRUCT)
    rows = snapshot_of(weighed, pool, kernels="native")["users"]
    ids = np.array([0, N - 1, N, 2**63 - 1])
    assert np.abs(rows.lookup(ids) - reference.rows(rows.data, ids)).max() < 1e-4


def test_gradients_may_come_from_many_threads_while_others_take_them() -> None:
    from hfh_embed.kernels import _native
    from hfh_embed.kernels.native_backend import shared_facts

    table, pool = CASES["line-dim-64"]
    facts, ids = shared_facts(table.shared, pool), np.arange(900)
    gradients, grads = _native.Gradients(pool.slots), np.ones((900, 64), np.float32)
    stored = np.zeros(pool.slots // 8, np.uint8)

    def work(turn: int) -> None:
        values = np.zeros(pool.slots, np.float32)
        for _ in range(10):
            gradients.add(*facts, ids, grads, 1.0)
            gradients.into(values, 1 + turn % 3)
            gradients.sgd(values, stored.copy(), 0.1, 0, 1 + turn % 3)
            if turn % 4 == 0:
                gradients.clear()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(16)))
    gradients.clear()
    once, again = np.zeros((2, pool.slots), np.float32)
    gradients.add(*facts, ids, grads, 1.0)
    gradients.into(once, 1)
    gradients.into(again, 64)
    assert once.any() and once.tobytes() == again.tobytes()
