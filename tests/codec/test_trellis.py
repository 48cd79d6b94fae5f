"""The search for a row's ring of bits: compiled against numpy, against all rings there are, and packed and read back."""

import numpy as np
import pytest

from hfh_embed.codec.trellis import _encode_numpy, encode_rings, fit_books, pack_rings
from hfh_embed.spec import StepRun, TrellisSpec
from hfh_embed.windows import windows_of

GENERATOR = np.random.default_rng(0)
SPECS = {
    "mixed": TrellisSpec((StepRun(4, 1, 4), StepRun(9, 1, 2), StepRun(5, 2, 1), StepRun(3, 4, 1)), 8),
    "short": TrellisSpec((StepRun(3, 1, 3),), 9),
    "few states": TrellisSpec((StepRun(2, 1, 1),), 2),
    "deep": TrellisSpec((StepRun(30, 1, 1),), 11),
    "scalar": TrellisSpec((StepRun(6, 1, 8),), 8),
    "long steps": TrellisSpec((StepRun(6, 1, 7), StepRun(4, 1, 5)), 9, norm_bits=3),
}


def _error(
    rows: np.ndarray, spec: TrellisSpec, values: np.ndarray, states: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    windows = windows_of(spec)
    return (weight * (rows - values[windows.book, states[:, windows.step]]) ** 2).sum(axis=1)


def _problem(name: str, count: int = 40):
    spec = SPECS[name]
    rows = GENERATOR.normal(size=(count, spec.entries)).astype(np.float32)
    values = GENERATOR.normal(size=(spec.books, 1 << spec.state_bits)).astype(np.float32)
    return spec, rows, values, np.linspace(2, 0.5, spec.entries).astype(np.float32)


@pytest.mark.parametrize("name", SPECS)
def test_compiled_and_numpy_searches_find_equally_good_rings(name: str) -> None:
    spec, rows, values, weight = _problem(name)
    plain = _error(rows, spec, values, _encode_numpy(rows, spec, values, weight), weight)
    fast = _error(rows, spec, values, encode_rings(rows, spec, values, weight, 1), weight)
    assert np.allclose(plain, fast, rtol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_states_are_windows_of_one_ring(name: str) -> None:
    spec, rows, values, weight = _problem(name)
    states = encode_rings(rows, spec, values, weight, 2)
    norms = GENERATOR.integers(0, 1 << spec.norm_bits, len(rows)).astype(np.uint8) if spec.norm_bits else None
    packed = np.packbits(pack_rings(states, norms, spec).reshape(-1), bitorder="little")
    windows, ids = windows_of(spec), np.arange(len(rows))
    assert (windows.states(packed, ids, spec) == states[:, windows.step]).all()
    if norms is not None:
        assert (windows.norms(packed, ids, spec) == norms).all()


@pytest.mark.parametrize("name", ["short", "few states"])
def test_the_ring_found_is_hardly_worse_than_the_best_of_all(name: str) -> None:
    spec, rows, values, weight = _problem(name, 200)
    found = _error(rows, spec, values, encode_rings(rows, spec, values, weight, 1), weight)
    windows = windows_of(spec)
    rings = np.arange(1 << spec.ring_bits)
    doubled = rings | rings << spec.ring_bits
    every = (doubled[:, None] >> windows.place) & ((1 << spec.state_bits) - 1)
    errors = (weight * (rows[:, None] - values[windows.book, every]) ** 2).sum(axis=2).min(axis=1)
    assert (found >= errors - 1e-4).all()
    assert found.mean() <= 1.1 * errors.mean()


def test_a_trellis_of_256_states_is_within_a_quarter_of_the_gaussian_bound() -> None:
    spec = TrellisSpec((StepRun(96, 1, 1),), 8)
    rows = np.random.default_rng(1).normal(size=(2_000, 96)).astype(np.float32)
    books = fit_books(rows[:1_000], np.ones(1_000), spec, np.ones(96), 5, 0, 1, lambda *_: None)
    states = encode_rings(rows[1_000:], spec, books.values * books.unit, np.ones(96), 1)
    error = ((rows[1_000:] - books.decode(states) * books.unit) ** 2).mean()
    assert 0.25 < error < 0.3125, error
