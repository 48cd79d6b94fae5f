"""Arguments that never come from this package: the compiled extension refuses what would leave its arrays."""

import numpy as np
import pytest

from hfh_embed.kernels import backends

pytestmark = pytest.mark.skipif("native" not in backends(), reason="the compiled kernels are not installed")

FACTS = {"key": 1, "slots": 5120, "bits": 1, "dim": 64, "num_hashes": 8, "chunk_size": 64}
FACTS |= {"locality": 3, "lines": 1, "signs": True}
REFUSED = (TypeError, ValueError)
OUTSIDE = [
    {"bits": 3},
    {"slots": 0},
    {"slots": -5},
    {"slots": 2**60},
    {"dim": 0},
    {"dim": -1},
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
    {"lines": 65},
    {"key": -1},
    {"key": 2**64},
]


def _table(
    pool: np.ndarray | None = None, embedding_dim: int = 64, latent_dim: int = 64, ids: int = 100, **changes: object
):
    from hfh_embed.kernels._native import Table

    table = Table(ids, embedding_dim, latent_dim, -1, True, False)
    if pool is not None or changes:
        table.set_shared(**(FACTS | changes), pool=np.zeros(640, np.uint8) if pool is None else pool, scale=1.0)
    return table


def _misaligned(array: np.ndarray) -> np.ndarray:
    moved = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


def _read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("sizes", [(0, 4, 4), (4, 0, 4), (4, 4, 0), (4, 2**17, 4), (4, 4, 2**17), (-1, 4, 4)])
def test_a_table_of_impossible_size_is_refused(sizes: tuple[int, int, int]) -> None:
    from hfh_embed.kernels._native import Table

    with pytest.raises(ValueError, match="sizes"):
        Table(*sizes, -1, True, False)


@pytest.mark.parametrize("changes", OUTSIDE)
def test_facts_that_would_leave_the_pool_are_refused(changes: dict[str, object]) -> None:
    from hfh_embed.kernels import _native

    with pytest.raises(REFUSED):
        _table(**changes)
    if changes.get("dim", 1) < 2**20:
        with pytest.raises(REFUSED):
            _native.Gradients(FACTS["slots"]).add(
                **(FACTS | changes), ids=np.zeros(1, np.int64), grads=np.zeros((1, 64), np.float32), factor=1.0
            )


@pytest.mark.parametrize("locality", range(4))
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32])
def test_a_pool_that_is_too_short_is_refused(bits: int, locality: int) -> None:
    facts = {"bits": bits, "locality": locality, "chunk_size": 8, "slots": 2048, "num_hashes": 2}
    _table(np.zeros(256 * bits, np.uint8), **facts).rows(np.arange(5), np.empty((5, 64), np.float32))
    wrong = [np.zeros(256 * bits - 1, np.uint8), np.zeros(256 * bits, np.int8), np.zeros((256 * bits, 1), np.uint8)]
    for pool in (*wrong, np.zeros(512 * bits, np.uint8)[::2]):
        with pytest.raises(REFUSED):
            _table(pool, **facts)


def test_a_shared_part_longer_than_the_row_is_refused() -> None:
    with pytest.raises(ValueError, match="latent"):
        _table(latent_dim=63, dim=64)


def test_parts_that_others_were_measured_against_cannot_be_exchanged() -> None:
    table = _table(np.zeros(640, np.uint8))
    table.set_exact(np.arange(2, dtype=np.uint32), np.zeros(16, np.uint8), 1, None)
    with pytest.raises(ValueError, match="already"):
        table.set_shared(**(FACTS | {"num_hashes": 4}), pool=np.zeros(640, np.uint8), scale=1.0)
    with pytest.raises(ValueError, match="already"):
        table.set_exact(np.arange(2, dtype=np.uint32), np.zeros(16, np.uint8), 1, None)


@pytest.mark.parametrize("network", ["bilinear", "mlp"])
def test_networks_that_do_not_fit_are_refused(network: str) -> None:
    f = np.float32
    fits = {"bilinear": [(8,), (8, 8)], "mlp": [(8, 3), (3,), (3,), (1,)]}[network]
    arrays = [np.zeros(shape, f) for shape in fits]
    getattr(_table(np.zeros(640, np.uint8)), f"set_{network}")(*arrays)
    with pytest.raises(ValueError, match="hash functions"):
        getattr(_table(), f"set_{network}")(*arrays)
    for place, right in enumerate(arrays):
        for wrong in (
            right[:-1],
            np.zeros((*right.shape, 1), f),
            right.astype(np.float64),
            np.zeros((*right.shape, 2), f)[..., 0],
            _misaligned(right),
        ):
            if wrong.flags.c_contiguous and wrong.shape == right.shape and wrong.flags.aligned and wrong.dtype == f:
                continue  # one value has no layout
            with pytest.raises(REFUSED):
                getattr(_table(np.zeros(640, np.uint8)), f"set_{network}")(*arrays[:place], wrong, *arrays[place + 1 :])


def test_private_parts_that_do_not_fit_are_refused() -> None:
    values, scales = np.zeros(100 * 8, np.uint8), np.zeros(100, np.uint16)
    _table().set_private(values, 1, 64, 1.0, scales, False)
    wrong = [
        (values[:-1], 1, 64, 1.0, None, False),
        (values, 2, 64, 1.0, None, False),
        (values, 3, 64, 1.0, None, False),
        (values, 1, 65, 1.0, None, False),
        (values, 1, 0, 1.0, None, False),
        (values, 1, 2**62, 1.0, None, False),
        (values, 1, 64, 1.0, scales[:-1], False),
        (values, 1, 64, 1.0, scales.astype(np.float32), False),
        (values, 1, 64, 1.0, np.zeros(200, np.uint16)[::2], False),
        (values, 1, 64, 1.0, _misaligned(scales), False),
        (values, 1, 8, 1.0, None, True),
    ]
    for arguments in wrong:
        with pytest.raises(REFUSED):
            _table().set_private(*arguments)
    for count in (7, 9):
        with pytest.raises(ValueError, match="length"):
            _table(np.zeros(640, np.uint8)).set_private(values, 1, count, 1.0, None, True)


def test_exact_parts_that_do_not_fit_are_refused_and_leave_the_table_usable() -> None:
    ids, values, scales = np.arange(9, dtype=np.uint32), np.zeros(9 * 8, np.uint8), np.zeros(9, np.uint16)
    wrong = [
        (ids, values[:-1], 1, None),
        (ids, values, 2, None),
        (ids, values, 1, scales[:-1]),
        (ids.astype(np.int32), values, 1, None),
        (ids.astype(np.uint64), values, 1, None),
        (np.arange(18, dtype=np.uint32)[::2], values, 1, None),
        (_misaligned(ids), values, 1, None),
        (_misaligned(ids.astype(np.int64)), values, 1, None),
        (None, values, 1, None),
        ([1, 2], values, 1, None),
    ]
    for arguments in wrong:
        table = _table(np.zeros(640, np.uint8))
        with pytest.raises(REFUSED):
            table.set_exact(*arguments)
        table.rows(np.arange(100), np.empty((100, 64), np.float32))
    table = _table(np.zeros(640, np.uint8))
    table.set_exact(ids[:0], values[:0], 1, None)
    table.rows(np.arange(100), np.empty((100, 64), np.float32))


def test_maps_and_residual_networks_that_do_not_fit_are_refused() -> None:
    f = np.float32
    for values, bias in [
        (np.zeros((63, 64), f), None),
        (np.zeros((64, 63), f), None),
        (np.zeros((64, 64)), None),
        (np.zeros((64, 64), f).T[::-1], None),
        (_misaligned(np.zeros((64, 64), f)), None),
        (np.zeros((64, 64), f), np.zeros(63, f)),
        (np.zeros((64, 64), f), np.zeros(64)),
    ]:
        with pytest.raises(REFUSED):
            _table().set_map(values, bias)
    fits = [np.zeros((64, 5), f), np.zeros(5, f), np.zeros((5, 64), f), np.zeros(64, f)]
    _table().set_residual(*fits)
    for place, right in enumerate(fits):
        for wrong in (right[:-1], right.astype(np.float64), _misaligned(right)):
            with pytest.raises(REFUSED):
                _table().set_residual(*fits[:place], wrong, *fits[place + 1 :])


@pytest.mark.parametrize(("embedding_dim", "latent_dim"), [(4, 100), (100, 4)])
def test_rows_of_another_length_than_the_latent_ones_need_a_map(embedding_dim: int, latent_dim: int) -> None:
    table = _table(embedding_dim=embedding_dim, latent_dim=latent_dim)
    table.set_private(np.zeros(100 * latent_dim, np.uint8), 8, latent_dim, 1.0, None, False)
    ids, out = np.arange(3), np.empty((3, embedding_dim), np.float32)
    for call in (
        lambda: table.rows(ids, out),
        lambda: table.lookup(ids, np.float32),
        lambda: table.bag(ids, np.array([0, 1, 2, 3]), None, 0, out, 1),
    ):
        with pytest.raises(ValueError, match="map"):
            call()
    table.set_map(np.zeros((latent_dim, embedding_dim), np.float32), None)
    assert table.rows(ids, out) == -1


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_outputs_and_ids_that_do_not_fit_are_refused(dtype: type) -> None:
    table, ids = _table(np.zeros(640, np.uint8)), np.arange(3)
    out = np.empty((3, 64), dtype)
    bounds = np.arange(4)
    assert table.rows(ids, out) == table.bag(ids, bounds, None, 0, out, 1) == -1
    wrong_ids = [ids[:2], ids.astype(np.int32), np.arange(6)[::2], ids[:, None], _misaligned(ids), [0, 1, 2], None]
    wrong_out = [
        out[:, :63].copy(),
        out[:2],
        out[0],
        out.astype(np.float64),
        out.astype(np.int32),
        out.astype(out.dtype.newbyteorder()),
        np.asfortranarray(out),
        _read_only(out),
        _misaligned(out),
        None,
        "out",
        out.tolist(),
    ]
    for given in wrong_ids:
        with pytest.raises(REFUSED):
            table.rows(given, out)
    for given in wrong_out:
        with pytest.raises(REFUSED):
            table.rows(ids, given)
        with pytest.raises(REFUSED):
            table.bag(ids, bounds, None, 0, given, 1)
    for threads in (-(2**31), -1, 0, 2**31 - 1):
        assert table.rows(ids, out, threads) == -1
    assert table.rows(np.array([0, -1, 5]), out) == 1
    assert table.rows(np.array([0, 1, 100]), out) == 2


def test_bounds_and_weights_that_do_not_fit_are_refused() -> None:
    table, ids, out = _table(np.zeros(640, np.uint8)), np.arange(3), np.empty((3, 64), np.float32)
    for bounds in ([0, 1, 2, 4], [-1, 1, 2, 3], [0, 2, 1, 3], [2**62, 0, 0, 1], [0, 2**62, 0, 3], []):
        with pytest.raises(ValueError, match=r"bounds|shape"):
            table.bag(ids, np.array(bounds, np.int64), None, 0, out, 1)
    bounds = np.arange(4)
    for weights in (
        np.ones(2, np.float32),
        np.ones(3),
        np.ones((3, 1), np.float32),
        _misaligned(np.ones(3, np.float32)),
    ):
        with pytest.raises(REFUSED):
            table.bag(ids, bounds, weights, 0, out, 1)
    for mode in (-1, 3):
        with pytest.raises(ValueError, match="mode"):
            table.bag(ids, bounds, None, mode, out, 1)
    with pytest.raises(REFUSED):
        table.bag(ids, _misaligned(bounds), None, 0, out, 1)


def test_what_is_not_plain_is_left_to_the_longer_way() -> None:
    table, ids = _table(np.zeros(640, np.uint8)), np.arange(6)
    assert table.lookup(ids, np.float32).shape == (6, 64)
    for given in (ids.tolist(), ids[::2], ids.astype(np.int32), ids.astype(">i8"), _misaligned(ids), None, "ids"):
        assert table.lookup(given, np.float32) is None
    for dtype in (np.float64, None, "float32", 7):
        assert table.lookup(ids, dtype) is None
    assert table.lookup(np.array([1, 100]), np.float32) is None
    assert table.lookup(np.zeros((1,) * 40, np.int64), np.float32) is None


def test_addresses_of_the_wrong_shape_are_refused() -> None:
    from hfh_embed.kernels import _native

    right = [np.empty((3, 1, 8), np.int64), np.empty((3, 1, 8), np.int64), np.empty((3, 1, 8), np.bool_)]
    _native.addresses(**FACTS, ids=np.arange(3), **dict(zip(("start", "rotation", "negative"), right, strict=True)))
    for place, array in enumerate(right):
        for wrong in (array[:2], array[..., :7].copy(), array.astype(np.int32), _read_only(array)):
            given = [*right[:place], wrong, *right[place + 1 :]]
            with pytest.raises(REFUSED):
                _native.addresses(
                    **FACTS, ids=np.arange(3), **dict(zip(("start", "rotation", "negative"), given, strict=True))
                )


def test_training_refuses_arrays_of_the_wrong_size() -> None:
    from hfh_embed.kernels import _native

    ids, grads = np.arange(3), np.ones((3, 64), np.float32)
    values, packed = np.zeros(5120, np.float32), np.zeros(640, np.uint8)
    gradients = _native.Gradients(5120)
    for wrong_ids, wrong_grads in [
        (ids[:2], grads),
        (ids, grads[:, :63].copy()),
        (ids.astype(np.int32), grads),
        (ids, grads.astype(np.float64)),
        (ids, np.asfortranarray(grads)),
        (_misaligned(ids), grads),
        (ids, _misaligned(grads)),
    ]:
        with pytest.raises(REFUSED):
            gradients.add(**FACTS, ids=wrong_ids, grads=wrong_grads, factor=1.0)
    assert len(gradients) == 0
    gradients.add(**FACTS, ids=ids, grads=grads, factor=1.0)
    short, wide = values[:-1].copy(), values.astype(np.float64)
    for wrong in (short, wide, _read_only(values), values.repeat(2)[::2], _misaligned(values)):
        with pytest.raises(REFUSED):
            gradients.into(wrong, 1)
        with pytest.raises(REFUSED):
            gradients.sgd(wrong, packed, 0.1, 0, 1)
        with pytest.raises(REFUSED):
            gradients.adam(values, values.copy(), wrong, packed, 0.1, 0.9, 0.99, 1e-8, 0, 1)
    half = np.zeros(5120, np.uint16)
    for wrong in (half[:-1].copy(), half.astype(np.float16), _read_only(half), half.repeat(2)[::2], _misaligned(half)):
        with pytest.raises(REFUSED):
            gradients.sgd(wrong, packed, 0.1, 0, 1)
        with pytest.raises(REFUSED):
            _native.pack(wrong, 1, 1.0, packed, 1)
    gradients.sgd(half, packed, 0.1, 0, 1)
    with pytest.raises(REFUSED):
        gradients.sgd(values, packed[:-1], 0.1, 0, 1)
    for bits in (0, 3, 16):
        with pytest.raises(REFUSED):
            _native.pack(values, bits, 1.0, packed, 1)
    for given, to in ((values[:-1].copy(), packed), (values, packed[:-1]), (values, _read_only(packed))):
        with pytest.raises(REFUSED):
            _native.pack(given, 1, 1.0, to, 1)
    for rows, width in ((2**62, 64), (2**40, 2**40), (1, 0)):
        with pytest.raises(REFUSED):
            _native.recycled(rows, width)


def test_levels_that_do_not_fit_are_refused_and_leave_the_table_usable() -> None:
    from hfh_embed.kernels._native import Table

    def fresh():
        return Table(100, 8, 8, -1, True, False)

    values, matrix, ids = np.zeros(40, np.uint8), np.zeros((4, 8), np.float32), np.arange(10, dtype=np.uint32)
    good = (10, values, 4, 4, 1.0, matrix, None)
    for place, wrong in (
        (0, 0),
        (0, 21),  # more rows than there are bytes
        (0, 2**62),
        (1, values[:19]),
        (2, 3),
        (3, 0),
        (3, 9),
        (3, 3),  # the map has four rows
        (5, None),  # narrower rows without a map
        (5, np.zeros((4, 9), np.float32)),
        (5, np.zeros((4, 8))),
        (6, ids[:9]),
        (6, ids.astype(np.uint16)),
    ):
        with pytest.raises(REFUSED):
            fresh().add_level(*(wrong if k == place else value for k, value in enumerate(good)))
    with pytest.raises(ValueError, match="needs a map"):
        fresh().add_level(5, values, 8, 8, 1.0, np.zeros((8, 8), np.float32), None)
    table = fresh()
    with pytest.raises(ValueError, match="no levels"):
        table.set_level_index(0, False, None, 1)
    table.add_level(*good)
    for index, codes, bits in (
        (3, None, 1),
        (1, None, 1),
        (1, np.zeros(12, np.uint8), 1),  # 96 codes
        (1, np.zeros(50, np.uint8), 3),
        (2, None, 1),  # no ids were given
    ):
        with pytest.raises(REFUSED):
            table.set_level_index(index, False, codes, bits)
    table.set_level_index(1, False, np.full(13, 255, np.uint8), 1)
    with pytest.raises(ValueError, match="complete"):
        table.add_level(*good)
    rows = np.ones((100, 8), np.float32)
    assert table.rows(np.arange(100), rows) == -1
    assert not rows.any()


def test_there_are_at_most_fifteen_levels_and_no_more_ids_than_the_table_has() -> None:
    from hfh_embed.kernels._native import Table

    table = Table(100, 8, 8, -1, True, False)
    for _ in range(15):
        table.add_level(10, np.zeros(80, np.uint8), 8, 8, 1.0, None, None)
    with pytest.raises(ValueError, match="too many levels"):
        table.add_level(10, np.zeros(80, np.uint8), 8, 8, 1.0, None, None)
    with pytest.raises(ValueError, match="more ids than the table"):
        table.set_level_index(0, False, None, 1)
