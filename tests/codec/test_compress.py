"""The codec: bytes kept, quality against product quantisation, bad input."""

import pickle
import sys

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfh_embed import reference
from hfh_embed.codec import compress
from hfh_embed.codec.allocation import error_bound, left_over, runs_for, water_filling
from hfh_embed.codec.kept import SomeRows
from hfh_embed.dense import Float32Rows
from hfh_embed.errors import InputError, RatioError
from hfh_embed.fidelity import compare

GENERATOR = np.random.default_rng(0)
SPECTRUM = 1 / np.sqrt(np.arange(1, 49))
ROTATION = np.linalg.qr(GENERATOR.normal(size=(48, 48)))[0]
ROWS = ((GENERATOR.normal(size=(6_000, 48)) * SPECTRUM) @ ROTATION + 0.1).astype(np.float32)


def _error(rows: np.ndarray, decoded: np.ndarray) -> float:
    return float(((rows - decoded) ** 2).sum() / (rows**2).sum())


@given(
    n=st.integers(1, 400),
    dim=st.integers(1, 40),
    ratio=st.floats(1, 80),
    seed=st.integers(0, 3),
    frequencies=st.booleans(),
)
@settings(max_examples=8, deadline=None)
def test_the_ratio_is_met_or_refused_with_the_nearest(
    n: int, dim: int, ratio: float, seed: int, frequencies: bool
) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(n, dim)).astype(np.float32)
    counts = generator.integers(0, 9, n) + 1 if frequencies else None
    try:
        snapshot = compress(rows, ratio=ratio, frequencies=counts)
    except RatioError as error:
        assert error.nearest < ratio
        assert compress(rows, ratio=error.nearest, frequencies=counts).ratio >= error.nearest
        return
    assert snapshot.nbytes * ratio <= rows.nbytes
    found = snapshot["table"].lookup(np.arange(n))
    assert np.isfinite(found).all()
    assert np.abs(found - reference.rows(snapshot["table"].data, np.arange(n))).max() < 1e-4


@pytest.mark.parametrize("ratio", [1, 6, 16])
def test_what_is_stored_grows_with_what_may_be_stored(ratio: float) -> None:
    errors = [_error(ROWS, compress(ROWS, ratio=r)["table"].lookup(np.arange(len(ROWS)))) for r in (ratio, 2 * ratio)]
    assert errors[0] < errors[1] < 1


@pytest.mark.parametrize(("ratio", "parts"), [(8, 24), (16, 12), (32, 6)])
def test_it_beats_product_quantisation_at_equal_bytes(ratio: int, parts: int) -> None:
    rows = np.tile(ROWS, (5, 1)) + np.random.default_rng(1).normal(size=(30_000, 48)).astype(np.float32) * 0.05
    quantiser = faiss.ProductQuantizer(48, parts, 8)
    quantiser.train(rows)
    nbytes = len(rows) * parts + quantiser.M * 256 * (48 // parts) * 4
    theirs = _error(rows, quantiser.decode(quantiser.compute_codes(rows)))
    snapshot = compress(rows, ratio=rows.nbytes / nbytes)
    assert snapshot.nbytes <= nbytes
    assert _error(rows, snapshot["table"].lookup(np.arange(len(rows)))) < theirs


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert compress(ROWS, ratio=12, seed=3).version == compress(ROWS, ratio=12, seed=3).version


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats_are_welcome(dtype) -> None:
    snapshot = compress(ROWS.astype(dtype), ratio=8)
    assert _error(ROWS, snapshot["table"].lookup(np.arange(len(ROWS)))) < 0.1


def test_a_memory_map_is_welcome(tmp_path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert compress(mapped, ratio=8).version == compress(ROWS, ratio=8).version


def test_frequent_ids_are_kept_better() -> None:
    frequencies = 1e4 / np.arange(1, len(ROWS) + 1) ** 1.5
    weighted = compare(compress(ROWS, ratio=16, frequencies=frequencies)["table"], ROWS, frequencies=frequencies)
    plain = compare(compress(ROWS, ratio=16)["table"], ROWS, frequencies=frequencies)
    assert weighted.weighted_error < 0.8 * plain.weighted_error


def test_zero_rows_stay_zero_and_large_ones_do_no_harm() -> None:
    rows = ROWS.copy()
    rows[::100] = 0
    rows[1::100] *= 1e4
    found = compress(rows, ratio=6)["table"].lookup(np.arange(len(rows)))
    assert not found[::100].any()
    usual = np.setdiff1d(np.arange(len(rows)), np.arange(1, len(rows), 100))
    assert _error(rows[usual], found[usual]) < 0.2


@pytest.mark.parametrize(
    "rows",
    [
        np.ones((500, 8), dtype=np.float32),
        np.zeros((500, 8), dtype=np.float32),
        np.repeat(ROWS[:3], 200, axis=0),
        np.concatenate((ROWS[:, :4], np.full((len(ROWS), 4), 3.0, dtype=np.float32)), axis=1),
        ROWS[:20],
        ROWS[:1],
        ROWS[:, :1],
    ],
    ids=["equal", "zero", "duplicates", "constant columns", "N < D", "N = 1", "D = 1"],
)
def test_degenerate_tables_are_compressed(rows: np.ndarray) -> None:
    rows = np.ascontiguousarray(rows)
    found = compress(rows, ratio=3.5)["table"].lookup(np.arange(len(rows)))
    assert ((rows - found) ** 2).sum() <= 0.1 * (rows**2).sum()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones(5, dtype=np.float32), "shape"),
        (np.ones((0, 5), dtype=np.float32), "both at least 1"),
        (np.ones((5, 5), dtype=np.int64), "int64"),
        ([[1.0]], "list"),
        (np.float64([[1e300, 1.0]]), "rows 0 hold"),
    ],
)
def test_what_is_no_table_is_refused(rows, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compress(rows, ratio=4)


def test_nan_rows_become_zeros_on_request() -> None:
    rows = ROWS.copy()
    rows[[3, 17, 4000]] = np.nan
    kept = rows.copy()
    found = compress(rows, ratio=4, nan="zero")["table"].lookup([3, 17, 4000, 5])
    assert np.array_equal(rows, kept, equal_nan=True), "the caller's rows were changed"
    assert np.abs(found[:3]).max() < 0.2 * np.abs(found[3]).max()


def test_a_floor_is_kept_by_the_whole_table() -> None:
    rows = ROWS[:1_500]
    for floor, figure in (({"min_cosine": 0.9}, "mean_cosine"), ({"min_recall": 0.5}, "recall_at_10")):
        snapshot = compress(rows, **floor)
        assert getattr(compare(snapshot["table"], rows), figure) >= next(iter(floor.values()))
        assert snapshot.ratio > 8


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ratio": 8, "min_cosine": 0.9},
        {"min_cosine": 1.5},
        {"min_recall": 0},
        {"ratio": 8, "metric": "angle"},
        {"ratio": 8, "nan": "skip"},
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict) -> None:
    with pytest.raises(InputError):
        compress(ROWS[:100], **options)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_every_metric_gives_a_table(metric: str) -> None:
    assert compress(ROWS[:2_000], ratio=8, metric=metric).ratio >= 8


def test_clustered_rows_begin_with_codes_of_the_whole_row() -> None:
    generator = np.random.default_rng(5)
    centres = generator.normal(size=(100, 24)) * 3
    rows = (centres[generator.integers(0, 100, 20_000)] + generator.normal(size=(20_000, 24)) * 0.3).astype(np.float32)
    snapshot = compress(rows, ratio=32)
    assert snapshot.spec.tables[0].coded is not None
    assert _error(rows, snapshot["table"].lookup(np.arange(len(rows)))) < 0.02


def test_nan_rows_are_listed() -> None:
    rows = ROWS.copy()
    rows[[3, 17, 4000]] = np.nan
    with pytest.raises(InputError, match="rows 3, 17, 4000 hold"):
        compress(rows, ratio=4)


@pytest.mark.parametrize("wrong", [np.ones(3), np.full(len(ROWS), np.nan), np.zeros(len(ROWS)), -np.ones(len(ROWS))])
def test_wrong_frequencies_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match="frequencies"):
        compress(ROWS, ratio=4, frequencies=wrong)


@pytest.mark.parametrize("ratio", [0.5, float("nan"), -1])
def test_wrong_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(RatioError, match="ratio is"):
        compress(ROWS, ratio=ratio)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60), st.integers(1, 300))
def test_water_filling_spends_what_it_was_given(variance: list[float], bits: int) -> None:
    values = np.sort(np.array(variance))[::-1]
    given_bits = water_filling(values, bits)
    assert np.isclose(given_bits.sum(), bits)
    assert (np.diff(given_bits) <= 1e-9).all(), "a smaller variance got more bits"


@given(st.integers(1, 80), st.integers(1, 320), st.floats(0.5, 2))
def test_runs_spend_the_bits_on_the_first_entries(dim: int, bits: int, power: float) -> None:
    runs = runs_for(1 / np.arange(1, dim + 1), bits, power)
    rates = [run.bits / run.entries for run in runs]
    assert rates == sorted(rates, reverse=True)
    assert sum(run.steps * run.entries for run in runs) <= dim
    assert sum(run.steps * run.bits for run in runs) == min(bits, 8 * dim)


@pytest.mark.parametrize("power", [1.0, 1.25])
def test_no_code_is_better_than_the_bound(power: float) -> None:
    variance = SPECTRUM**2
    runs = runs_for(variance, 96, power)
    left = np.ones(len(variance))
    rates = np.repeat([left_over(run) for run in runs], [run.steps * run.entries for run in runs])
    left[: len(rates)] = rates
    bound = error_bound(variance, 96)
    assert bound < float((left * variance).sum()) < 1.5 * bound


def test_exact_rows_are_exact_where_rows_have_lengths_of_their_own() -> None:
    rng = np.random.default_rng(3)
    directions = rng.standard_normal((12, 48)) @ rng.standard_normal((48, 48)) + 3
    rows = (rng.standard_normal((3000, 12)) @ directions + 6 * directions[0]) * rng.uniform(0.2, 5, (3000, 1))
    frequencies = 1 / (1.0 + rng.permutation(3000))
    snapshot = compress(rows.astype(np.float32), ratio=4, frequencies=frequencies)
    found = snapshot["table"].lookup(np.arange(3000))
    lost, energy = ((found - rows) ** 2).sum(axis=1), (rows**2).sum(axis=1)
    exact = snapshot["table"].data.arrays["exact.ids"].astype(np.int64)
    assert (lost / energy)[exact].max() < 0.01, snapshot.metadata["method"]
    weight = frequencies / frequencies.mean() + 0.01
    plain = float(compress(rows.astype(np.float32), ratio=4).metadata["relative error"])
    assert weight @ lost / (weight @ energy) < plain, "exact rows take more than they give"


@pytest.mark.parametrize("ratio", [2, 4, 10, 20])
@pytest.mark.parametrize("where", ["a few", "half", "one outside the sample"])
def test_rows_of_zeros_stay_exactly_zero(ratio: float, where: str, monkeypatch) -> None:
    generator = np.random.default_rng(5)
    rows = (generator.normal(size=(3_000, 32)) + 0.5).astype(np.float32)  # a centre that codes would add
    zeros = {"a few": np.array([0, 7, 2_999]), "half": np.arange(0, 3_000, 2), "one outside the sample": np.array([1])}
    rows[zeros[where]] = 0
    if where == "one outside the sample":
        monkeypatch.setattr(sys.modules["hfh_embed.codec.compress"], "SAMPLE_ROWS", 500)
    found = compress(rows, ratio=ratio)["table"].lookup(np.arange(3_000))
    assert not found[zeros[where]].any()
    assert np.delete(found, zeros[where], axis=0).any(axis=1).all()


def test_a_row_of_zeros_that_is_the_padding_leaves_every_form_open() -> None:
    rows = ROWS.copy()
    rows[3] = 0
    padded, plain = compress(rows, ratio=8, padding_id=3), compress(ROWS, ratio=8)
    assert not padded["table"].lookup([3]).any()
    assert padded.metadata["method"] == plain.metadata["method"]


def test_kept_rows_of_a_mapped_file_go_to_other_processes_as_its_name(tmp_path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(4_000, 32)).astype(np.float32))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    kept = np.arange(0, 4_000, 40)
    rows = Float32Rows(SomeRows(Float32Rows(mapped, "refuse"), kept), "refuse")
    sent = pickle.dumps(rows)
    assert len(sent) < 8 * len(kept) + 2_000 < mapped.nbytes
    assert np.array_equal(pickle.loads(sent)[10:20], mapped[kept[10:20]])
