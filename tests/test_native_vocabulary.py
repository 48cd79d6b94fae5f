"""The compiled softmax over a vocabulary, against float64 and against float32 products; and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hfh_embed.kernels import native_chosen

if not native_chosen():
    pytest.skip("the package was installed without its compiled kernels", allow_module_level=True)

from hfh_embed.kernels import _native

if not _native.TILES:
    pytest.skip("this processor has no AMX, or HFH_SIMD keeps to vectors", allow_module_level=True)

F32 = npt.NDArray[np.float32]
NONE = np.zeros(0, np.float32)


class Case:
    """Hidden states, rows, a bias and the gradients of losses, with what ours and float32 make of them."""

    def __init__(self, tokens: int, rows: int, dim: int, whole: bool, bias: bool, spread: float) -> None:
        rng = np.random.default_rng(tokens * rows + dim)
        self.hidden = rng.standard_normal((tokens, dim)).astype(np.float32)
        levels = rng.integers(-8, 9, (rows, dim)) if whole else rng.standard_normal((rows, dim)) * 5
        self.rows = levels.astype(np.float32)
        self.scale = np.float32(spread / 5 / np.sqrt(dim))
        self.bias = rng.standard_normal(rows).astype(np.float32) if bias else NONE
        self.targets = rng.integers(0, rows, tokens)
        self.counted, self.hit = rng.random((2, tokens)).astype(np.float32)
        self.spread = (self.counted / rows).astype(np.float32)

    def expected(self, dtype: Any) -> list[npt.NDArray[Any]]:
        """Normalizers and the gradients of hidden states, rows and bias in plain arithmetic of this type."""
        hidden, rows, bias = (a.astype(dtype) for a in (self.hidden, self.rows, self.bias))
        weights = rows * dtype(self.scale)
        logits = hidden @ weights.T + (bias if len(bias) else dtype(0))
        largest = logits.max(axis=1, keepdims=True)
        normalizer = (largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True)))[:, 0]
        of = np.exp(logits - normalizer[:, None]) * self.counted[:, None].astype(dtype) - self.spread[:, None].astype(
            dtype
        )
        of[np.arange(len(hidden)), self.targets] -= self.hit.astype(dtype)
        return [normalizer, of @ weights, of.T @ hidden, of.sum(axis=0)]

    def ours(self, tile: int, threads: int) -> list[F32]:
        made = _native.Vocabulary(self.hidden)
        parts = [slice(first, first + tile) for first in range(0, len(self.rows), tile)]
        for part in parts:
            made.forward(self.rows[part], float(self.scale), self.bias[part], threads)
        normalizer = np.empty(len(self.hidden), np.float32)
        made.normalizers(normalizer)
        of_rows, of_bias, of_hidden = np.empty_like(self.rows), np.empty_like(self.bias), np.empty_like(self.hidden)
        for part in parts:
            tokens = (normalizer, self.counted, self.spread, self.hit, self.targets)
            made.backward(
                self.rows[part],
                part.start,
                float(self.scale),
                self.bias[part],
                *tokens,
                of_rows[part],
                of_bias[part],
                threads,
            )
        made.hidden_gradients(of_hidden)
        return [normalizer, of_hidden, of_rows, of_bias]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spread", [0.1, 3.0, 100.0])
@pytest.mark.parametrize(
    ("tokens", "rows", "dim", "tile"),
    [(1, 1, 1, 1), (1, 200, 16, 64), (65, 63, 33, 63), (64, 640, 32, 128), (300, 1001, 100, 500)],
)
def test_sums_are_as_exact_as_those_of_float32(
    tokens: int, rows: int, dim: int, tile: int, spread: float, bias: bool, whole: bool
) -> None:
    case = Case(tokens, rows, dim, whole, bias, spread)
    exact, plain = case.expected(np.float64), case.expected(np.float32)
    for name, ours, theirs, true in zip(
        ("normalizer", "hidden", "rows", "bias"), case.ours(tile, 1), plain, exact, strict=True
    ):
        if name == "bias" and not bias:
            continue
        size = np.abs(true).max()
        error, allowed = np.abs(ours - true).max(), 2 * np.abs(theirs - true).max() + 1e-6 * size
        assert error <= allowed, (name, error, allowed)


def test_the_number_of_threads_changes_no_bit() -> None:
    case = Case(700, 300, 48, True, True, 3.0)
    for one, many in zip(case.ours(128, 1), case.ours(128, 3), strict=True):
        np.testing.assert_array_equal(one, many)


def test_arrays_that_do_not_fit_are_refused() -> None:
    case = Case(8, 64, 16, True, True, 1.0)
    made = _native.Vocabulary(case.hidden)
    with pytest.raises(ValueError, match="different lengths"):
        made.forward(case.rows[:, :8].copy(), 1.0, NONE, 1)
    with pytest.raises(ValueError, match="the bias"):
        made.forward(case.rows, 1.0, case.bias[1:], 1)
    with pytest.raises(ValueError, match="1 to 4096"):
        made.forward(np.zeros((4097, 16), np.float32), 1.0, NONE, 1)
    with pytest.raises(ValueError, match="no hidden states"):
        _native.Vocabulary(np.zeros((0, 4), np.float32))
    with pytest.raises(ValueError, match="out has the wrong shape"):
        made.normalizers(np.empty(7, np.float32))
    with pytest.raises(ValueError, match="out has the wrong shape"):
        made.hidden_gradients(np.empty((8, 15), np.float32))
    tokens = [np.zeros(8, np.float32)] * 4
    with pytest.raises(ValueError, match="arrays of tokens"):
        made.backward(case.rows, 0, 1.0, NONE, *tokens, case.targets[1:], np.empty_like(case.rows), NONE, 1)
    with pytest.raises(ValueError, match="of_rows"):
        made.backward(case.rows, 0, 1.0, NONE, *tokens, case.targets, np.empty((63, 16), np.float32), NONE, 1)


def test_targets_outside_the_tile_are_left_alone() -> None:
    case = Case(8, 64, 16, True, False, 1.0)
    case.targets = np.array([-1, 64, 2**40, -(2**63), 2**63 - 1, 63, 0, 2**31], dtype=np.int64)
    case.counted[:] = case.spread[:] = 0
    _, of_hidden, _, _ = case.ours(64, 1)
    touched = np.flatnonzero(np.abs(of_hidden).sum(axis=1))
    np.testing.assert_array_equal(touched, [5, 6])
