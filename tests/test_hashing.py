"""The hash against golden vectors, made here a second time in plain Python integers, and against chance."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hfh_embed.hashing import addresses, below, draw, id_state, key_ids, mix64, table_key
from hfh_embed.kernels import backends
from hfh_embed.spec import Locality, PoolSpec, SharedSpec

GOLDEN = json.loads((Path(__file__).parent / "golden" / "hashing.json").read_text())
MASK = 2**64 - 1
IDS = [0, 1, 2, 1000, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1]
POOL = PoolSpec("pool", 512 * 1000)
SHARED = {
    Locality.FREE: SharedSpec("pool", 64, 99, 3, 16, Locality.FREE),
    Locality.ALIGNED: SharedSpec("pool", 64, 99, 2, 32, Locality.ALIGNED),
    Locality.LINE: SharedSpec("pool", 64, 99, 4, 8, Locality.LINE, lines=2),
    Locality.WORDS: SharedSpec("pool", 64, 99, 8, 64),
}


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def _draw(key: int, id_: int, n: int) -> int:
    return _mix((_mix((id_ + key) & MASK) + (n + 1) * 0x9E3779B97F4A7C15) & MASK)


def test_the_mixer_is_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 0, as its authors' and Java's implementations give them.
    first = [int(draw(np.uint64([0]), n)[0]) for n in range(3)]
    assert first == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("key", [0, 1, 99, 2**63, 2**64 - 1])
def test_draws_equal_plain_integers(key: int) -> None:
    states = id_state(key, np.array(IDS))
    for n in (0, 1, 7, 1000):
        assert draw(states, n).tolist() == [_draw(key, id_, n) for id_ in IDS]


def test_below_takes_the_upper_half() -> None:
    draws = np.uint64([0, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
    assert below(draws, 10).tolist() == [0, 0, 0, 5, 9]
    assert below(draws, 2**32).tolist() == [0, 0, 1, 2**31, 2**32 - 1]


@pytest.mark.parametrize("locality", SHARED)
def test_addresses_equal_the_golden_vectors(locality: Locality) -> None:
    where = addresses(SHARED[locality], POOL, np.array(IDS))
    golden = GOLDEN["addresses"][locality.value]
    assert where.start.tolist() == golden["start"]
    assert where.rotation.tolist() == golden["rotation"]
    assert where.negative.astype(int).tolist() == golden["negative"]


def test_words_equal_their_definition_in_plain_integers() -> None:
    where = addresses(SHARED[Locality.WORDS], POOL, np.array(IDS))
    for row, id_ in enumerate(IDS):
        line = ((_draw(99, id_, 0) >> 32) * 1000) >> 32
        fields = _draw(99, id_, 1)
        for u in range(8):
            field = (fields >> (8 * u)) & 0xFF
            found = (where.start[row, 0, u], where.rotation[row, 0, u], where.negative[row, 0, u])
            assert found == (line * 512 + u * 64, field & 63, bool(field >> 7))


def test_table_keys_and_key_ids_equal_the_golden_vectors() -> None:
    assert {name: f"{table_key(7, name):016x}" for name in GOLDEN["table_keys"]} == GOLDEN["table_keys"]
    assert key_ids(list(GOLDEN["key_ids"]), 10**9).tolist() == list(GOLDEN["key_ids"].values())


@pytest.mark.skipif("native" not in backends(), reason="the compiled kernels are not installed")
@pytest.mark.parametrize("bits", [1, 2, 8, 32])
@pytest.mark.parametrize("locality", SHARED)
def test_native_addresses_are_the_same(locality: Locality, bits: int) -> None:
    from hfh_embed.kernels import native_backend

    pool = PoolSpec("pool", 512 // bits * 1000, bits)
    shared = replace(SHARED[locality], chunk_size=min(SHARED[locality].chunk_size, 512 // bits // 8))
    ids = np.concatenate((IDS, np.random.default_rng(0).integers(0, 2**63 - 1, 500)))
    for mine, defined in zip(native_backend.addresses(shared, pool, ids), addresses(shared, pool, ids), strict=True):
        assert (mine == defined).all()


@pytest.mark.parametrize("flipped", [0, 1, 17, 31, 40, 62])
def test_one_bit_of_an_id_changes_half_of_a_draw(flipped: int) -> None:
    ids = np.random.default_rng(1).integers(0, 2**62, 4_000)
    changed = draw(id_state(5, ids), 3) ^ draw(id_state(5, ids ^ (1 << flipped)), 3)
    share = np.unpackbits(changed.view(np.uint8)).reshape(len(ids), 64).mean(axis=0)
    assert abs(share - 0.5).max() < 0.05, f"bit {abs(share - 0.5).argmax()} changes in {share}"


@pytest.mark.parametrize(("what", "other"), [("id", (6, 5, 3)), ("table", (5, 6, 3)), ("draw", (5, 5, 4))])
def test_draws_of_another_id_table_or_hash_are_unrelated(what: str, other: tuple[int, int, int]) -> None:
    del what
    ids = np.arange(20_000) * 11
    one = draw(id_state(5, ids), 3)
    two = draw(id_state(other[1], ids + (other[0] - 5)), other[2])
    agreeing = np.unpackbits((one ^ two).view(np.uint8)).mean()
    assert abs(agreeing - 0.5) < 0.004


@pytest.mark.parametrize("locality", SHARED)
def test_slots_are_used_evenly(locality: Locality) -> None:
    pool = PoolSpec("pool", 512 * 20)
    shared = replace(SHARED[locality], dim=SHARED[locality].chunk_size)
    starts = addresses(shared, pool, np.arange(40_000)).start
    lines = np.bincount((starts[:, :, 0] // 512).ravel(), minlength=20)
    expected = lines.sum() / 20
    chi_square = ((lines - expected) ** 2 / expected).sum()
    assert chi_square < 60, f"{chi_square} for 19 degrees of freedom: {lines}"  # one in 10**5 for an even hash


@pytest.mark.parametrize("locality", SHARED)
def test_signs_and_rotations_are_even(locality: Locality) -> None:
    where = addresses(SHARED[locality], POOL, np.arange(20_000))
    assert np.abs(where.negative.mean(axis=0) - 0.5).max() < 0.02
    if locality is Locality.WORDS:
        counts = np.bincount(where.rotation.ravel(), minlength=64)
        assert np.abs(counts / counts.mean() - 1).max() < 0.1


@pytest.mark.parametrize("locality", SHARED)
def test_equal_ids_of_two_tables_share_no_addresses(locality: Locality) -> None:
    ids = np.arange(2_000)
    one = addresses(replace(SHARED[locality], key=table_key(0, "users")), POOL, ids)
    two = addresses(replace(SHARED[locality], key=table_key(0, "items")), POOL, ids)
    same = ((one.start == two.start) & (one.rotation == two.rotation)).reshape(len(ids), -1).all(axis=1)
    assert not same.any()


@pytest.mark.parametrize("locality", SHARED)
def test_every_slot_lies_in_the_pool(locality: Locality) -> None:
    shared = SHARED[locality]
    lines = max(1, shared.chunk_size * shared.num_hashes // 512)
    pool = PoolSpec("pool", 512 * lines)  # the smallest pool
    slots = addresses(shared, pool, np.arange(5_000)).slots(shared.chunk_size)
    assert slots.min() >= 0
    assert slots.max() < pool.slots


def test_mix64_does_not_warn_about_overflow() -> None:
    with np.errstate(all="raise"):
        mix64(np.uint64([2**64 - 1]))
