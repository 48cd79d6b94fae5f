"""Rows as JSON text by the compiled kernels: what is read back is what was written."""

import json

import numpy as np
import pytest

from hfh_embed.kernels import backends, json_rows

pytestmark = pytest.mark.skipif("native" not in backends(), reason="the compiled kernels are not installed")


def _read(text: bytes | None) -> np.ndarray:
    assert text is not None
    return np.array(json.loads(text), dtype=np.float64).astype(np.float32)


def test_every_kind_of_float32_reads_back_with_the_same_bits() -> None:
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    powers = np.float32(10.0) ** np.arange(-40, 38, dtype=np.float32)
    near = np.concatenate([np.nextafter(powers, np.float32(side)) for side in (0, np.inf)])
    values = np.concatenate(
        (patterns[np.isfinite(patterns)], powers, near, -near, generator.normal(size=100_000).astype(np.float32))
    ).astype(np.float32)
    rows = np.concatenate((values, np.zeros(-len(values) % 7, np.float32))).reshape(-1, 7)
    assert _read(json_rows(rows)).tobytes() == rows.tobytes()


def test_plain_numbers_look_plain() -> None:
    rows = np.float32([[0.0, -0.0, 1.0, -0.25, 10.0, 123456.0, 2.0**-10, 0.001953125]])
    assert json_rows(rows) == b"[[0.0,-0.0,1.0,-0.25,10.0,123456.0,0.0009765625,0.001953125]]"


def test_what_is_not_finite_is_null() -> None:
    assert json_rows(np.float32([[np.nan, np.inf], [-np.inf, 2.0]])) == b"[[null,null],[null,2.0]]"


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (3, 1), (1, 5000), (700, 64)])
def test_shapes_survive(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    assert _read(json_rows(rows)).reshape(shape).tobytes() == rows.tobytes()


def test_other_arrays_are_left_to_others() -> None:
    rows = np.ones((4, 4), np.float32)
    assert json_rows(rows[:, ::2]) is None
    assert json_rows(rows.astype(np.float16)) is None
    assert json_rows(rows[0]) is None
