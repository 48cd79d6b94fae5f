import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hfh_embed.packing import levels_from_codes, pack, packed_bytes, round_to_codes, unpack


@given(st.integers(1, 16), st.integers(1, 40), st.integers(0, 5), st.data())
def test_packing_comes_back(bits: int, count: int, rows: int, data: st.DataObject) -> None:
    codes = data.draw(hnp.arrays(np.uint16, (rows, count), elements=st.integers(0, 2**bits - 1)))
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_bytes(count, bits))
    assert (unpack(packed, count, bits) == codes).all()


def test_the_first_value_is_in_the_lowest_bits() -> None:
    assert pack(np.array([[1, 0, 0, 0, 0, 0, 0, 0, 1]]), 1).tolist() == [[1, 1]]
    assert pack(np.array([[3, 1]]), 4).tolist() == [[0x13]]
    assert pack(np.array([[0x3FF, 0]]), 10).tolist() == [[0xFF, 0x03, 0]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_levels_are_odd_symmetric_and_evenly_spaced(bits: int) -> None:
    levels = levels_from_codes(np.arange(2**bits), bits)
    assert (levels % 2 == 1).all()
    assert (levels == -levels[::-1]).all()
    assert (np.diff(levels) == 2).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@given(st.floats(-300, 300))
def test_rounding_takes_the_nearest_level(bits: int, value: float) -> None:
    levels = levels_from_codes(np.arange(2**bits), bits)
    code = int(round_to_codes(np.array([value]), 1.0, bits)[0])
    assert abs(levels[code] - value) <= np.abs(levels - value).min() + 1e-9
