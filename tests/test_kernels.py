"""One suite for all backends, against the float64 reference."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hfh_embed import reference
from hfh_embed.errors import UnknownIdError
from hfh_embed.kernels import backends
from hfh_embed.spec import Unknown
from tests.builders import BIT_EXACT, CASES, N, snapshot_of

BACKENDS = backends()


def _ids(table) -> np.ndarray:
    generator = np.random.default_rng(3)
    ids = np.concatenate(([0, N - 1, 7, 7], generator.integers(0, N, 60)))
    if table.unknown is not Unknown.ERROR:
        ids = np.concatenate((ids, [N, 2**31, 2**31 + 5, 2**63 - 1]))
    return ids


def _budget(truth: np.ndarray) -> np.ndarray:
    """float32 sums of some tens of terms: a few units in the last place of the largest entry of a row."""
    return 4e-6 * (np.abs(truth).max(axis=-1, keepdims=True) + 1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_rows_equal_the_reference(case: str, backend: str) -> None:
    table = snapshot_of(*CASES[case], kernels=backend)["users"]
    ids = _ids(table)
    truth, rows = reference.rows(table.data, ids), table.lookup(ids)
    worst = np.abs(rows - truth)
    assert (worst <= _budget(truth)).all(), f"worst error {worst.max()} at row {worst.max(axis=1).argmax()}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", sorted(BIT_EXACT))
def test_sums_of_few_bit_values_have_the_same_bits_everywhere(case: str, backend: str) -> None:
    spec = CASES[case]
    ids = _ids(snapshot_of(*spec)["users"])
    mine = snapshot_of(*spec, kernels=backend)["users"].lookup(ids)
    plain = snapshot_of(*spec, kernels="numpy")["users"].lookup(ids)
    assert mine.tobytes() == plain.tobytes()
    if case.split("-")[0] in (
        "free",
        "aligned",
        "line",
        "words",
    ):  # one product: even the rounded reference is the same
        assert mine.tobytes() == reference.rows(snapshot_of(*spec)["users"].data, ids).astype(np.float32).tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(
    "case",
    [
        "words-1",
        "padding-zero",
        "line-16-words",
        "line-16-words-dim-27",
        "map",
        "coded-8",
        "private",
        "kept",
        "kept-levels",
        "kept-trellis",
    ],
)
def test_bags_equal_the_reference(case: str, mode: str, backend: str) -> None:
    table = snapshot_of(*CASES[case], kernels=backend)["users"]
    ids = np.array([7, 3, 5, 7, 0, 1002, 9, 9])
    offsets = np.array(
        [0, 1, 1, 4, 8]
    )  # one id (the padding id), an empty bag, more, more, and an empty one at the end
    truth = reference.bag(table.data, ids, offsets, mode)
    rows = table.bag(ids, offsets, mode=mode)
    assert rows.shape == truth.shape == (5, table.embedding_dim)
    assert (np.abs(rows - truth) <= 3 * _budget(truth)).all()
    last = reference.bag(table.data, ids, offsets, mode, include_last_offset=True)
    assert (np.abs(table.bag(ids, offsets, mode=mode, include_last_offset=True) - last) <= 3 * _budget(last)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["words-1", "line-16-words", "line-16-words-dim-27", "kept"])
def test_weighted_bags_equal_the_reference(case: str, backend: str) -> None:
    table = snapshot_of(*CASES[case], kernels=backend)["users"]
    ids, weights = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[0.5, -2, 3], [0, 1, 1e-3]])
    truth = reference.bag(table.data, ids.reshape(-1), np.array([0, 3]), "sum", weights.reshape(-1))
    assert np.abs(table.bag(ids, mode="sum", per_sample_weights=weights) - truth).max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["words-1", "coded-8", "mlp", "kept"])
def test_empty_batches_and_bags_have_a_shape(case: str, backend: str) -> None:
    table = snapshot_of(*CASES[case], kernels=backend)["users"]
    assert table.lookup([]).shape == (0, 40)
    assert table.lookup(np.empty((0, 3), dtype=np.int64)).shape == (0, 3, 40)
    assert table.bag([], []).shape == (0, 40)
    assert (table.bag([], [0, 0]) == np.zeros((2, 40))).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_float16_rows_are_the_rounded_float32_ones(backend: str) -> None:
    table = snapshot_of(*CASES["private"], kernels=backend)["users"]
    ids = np.arange(N)
    assert table.lookup(ids, dtype=np.float16).tobytes() == table.lookup(ids).astype(np.float16).tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", [-1, N, 2**31, 2**63 - 1])
def test_the_refused_id_is_named(wrong: int, backend: str) -> None:
    table = snapshot_of(*CASES["words-1"], kernels=backend)["users"]
    with pytest.raises(UnknownIdError, match=str(wrong)):
        table.lookup([1, wrong, 2])
    with pytest.raises(UnknownIdError, match=str(wrong)):
        table.bag([1, wrong, 2], [0, 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_large_batch_equals_its_pieces(backend: str) -> None:
    table = snapshot_of(*CASES["private"], kernels=backend)["users"]
    ids = np.random.default_rng(0).integers(0, N, 50_001)
    whole = table.lookup(ids)
    assert (whole[::997] == np.stack([table.lookup(id_) for id_ in ids[::997]])).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_threads_get_the_same_rows(backend: str) -> None:
    table = snapshot_of(*CASES["coded-8"], kernels=backend)["users"]
    ids = np.arange(N)
    truth = table.lookup(ids)
    with ThreadPoolExecutor(8) as threads:
        assert all((rows == truth).all() for rows in threads.map(lambda _: table.lookup(ids), range(40)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_forked_process_gets_the_same_rows(backend: str) -> None:
    table = snapshot_of(*CASES["words-1"], kernels=backend)["users"]
    truth = table.lookup(np.arange(N))
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=lambda: send.send_bytes(table.lookup(np.arange(N)).tobytes()))
    child.start()
    assert receive.recv_bytes() == truth.tobytes()
    child.join(10)
    assert child.exitcode == 0


def test_non_contiguous_ids_and_small_integers_are_welcome() -> None:
    table = snapshot_of(*CASES["words-1"])["users"]
    ids = np.arange(200)
    assert (table.lookup(ids[::3]) == table.lookup(ids[::3].copy())).all()
    assert (table.lookup(ids.astype(np.uint8)) == table.lookup(ids)).all()
    assert (table.lookup(np.asfortranarray(ids.reshape(10, 20))) == table.lookup(ids).reshape(10, 20, 40)).all()
