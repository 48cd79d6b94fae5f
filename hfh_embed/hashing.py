"""Where a chunk lives in the pool: the hash functions, in numpy, as their definition.

Every (table key, id) seeds one SplitMix64 stream (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014; output function: David Stafford's "Mix13"). Draw ``n`` of that stream decides one address,
so an address depends on the pool's seed, the table, the id, the chunk and the hash function, and costs no stored byte.
All arithmetic is unsigned and modulo 2**64. The torch and native versions give the same bits; ``tests/golden`` holds them.

    state(key, id) = mix64(id + key)
    draw(state, n) = mix64(state + (n + 1) * GOLDEN)
    below(draw, m) = ((draw >> 32) * m) >> 32          an integer in [0, m), m <= 2**32
    negative(draw) = draw & 1

A fetch of chunk ``c`` by hash function ``u`` reads Z slots: entry ``j`` is slot ``start + (j + rotation) % Z``, negated
where ``negative``. How the draws give start, rotation and sign is one function a locality, below.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hfh_embed.spec import LINE_BITS, Locality, PoolSpec, SharedSpec

__all__ = ["Addresses", "addresses", "draw", "id_state", "key_ids", "mix64", "table_key"]

GOLDEN = 0x9E3779B97F4A7C15
"""2**64 / golden ratio, odd: the step of the SplitMix64 stream."""

U64 = npt.NDArray[np.uint64]


class Addresses(NamedTuple):
    """Addresses of B ids: C chunks, U hash functions. Each array is (B, C, U)."""

    start: npt.NDArray[np.int64]
    rotation: npt.NDArray[np.int64]
    negative: npt.NDArray[np.bool_]

    def slots(self, chunk_size: int) -> npt.NDArray[np.int64]:
        """Every slot that is read, (B, C, U, Z)."""
        entries = np.arange(chunk_size, dtype=np.int64)
        return self.start[..., None] + (entries + self.rotation[..., None]) % chunk_size


def mix64(x: U64) -> U64:
    """SplitMix64's output function, a bijection of the 64-bit integers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def id_state(key: int, ids: npt.NDArray[np.int64]) -> U64:
    """The stream of each id of the table with this key, same shape as ``ids``."""
    return mix64(ids.astype(np.uint64) + np.uint64(key))


def draw(state: U64, n: npt.NDArray[np.uint64] | int) -> U64:
    """Draw ``n`` (counted from 0) of each stream, broadcast."""
    counted = np.atleast_1d(np.asarray(n, dtype=np.uint64)) + np.uint64(
        1
    )  # numpy warns of scalars that wrap, not of arrays
    step = counted * np.uint64(GOLDEN)
    return mix64(state + step)


def below(draws: U64, m: int) -> npt.NDArray[np.int64]:
    """Each draw as an integer in [0, m), m <= 2**32, from its upper half."""
    return (((draws >> np.uint64(32)) * np.uint64(m)) >> np.uint64(32)).astype(np.int64)


def negative(draws: U64) -> npt.NDArray[np.bool_]:
    """Each draw as a sign, from its lowest bit."""
    return (draws & np.uint64(1)).astype(np.bool_)


def addresses(shared: SharedSpec, pool: PoolSpec, ids: npt.NDArray[np.int64]) -> Addresses:
    """The addresses that B ids read, for every chunk and hash function.

    Args:
        shared: the table's shared part.
        pool: the pool that it reads.
        ids: (B,) int64, each >= 0.
    """
    state = id_state(shared.key, ids)[:, None, None]
    match shared.locality:
        case Locality.FREE:
            return _free(shared, state, step=1, starts=pool.slots - shared.chunk_size + 1)
        case Locality.ALIGNED:
            return _free(shared, state, step=shared.chunk_size, starts=pool.slots // shared.chunk_size)
        case Locality.LINE:
            return _line(shared, state, pool)
        case Locality.WORDS:
            return _words(shared, state, pool)


def _grid(shared: SharedSpec) -> U64:
    """The running number of each (chunk, hash function), (1, C, U)."""
    count = shared.num_chunks * shared.num_hashes
    return np.arange(count, dtype=np.uint64).reshape(1, shared.num_chunks, shared.num_hashes)


def _free(shared: SharedSpec, state: U64, step: int, starts: int) -> Addresses:
    """FREE and ALIGNED: every fetch has a draw of its own over the whole pool."""
    draws = draw(state, _grid(shared))
    start = below(draws, starts) * step
    return Addresses(start, np.zeros_like(start), negative(draws) & shared.signs)


def _line(shared: SharedSpec, state: U64, pool: PoolSpec) -> Addresses:
    """LINE: the first draws choose the row's lines, then every fetch a place inside the line whose turn it is."""
    line_slots = LINE_BITS // pool.bits
    lines = below(draw(state, np.arange(shared.lines, dtype=np.uint64)), pool.slots // line_slots)  # (B, 1, lines)
    grid = _grid(shared)
    draws = draw(state, grid + np.uint64(shared.lines))
    turn = (grid % np.uint64(shared.lines)).astype(np.int64)
    line = np.take_along_axis(np.broadcast_to(lines, (*draws.shape[:2], shared.lines)), turn, axis=2)
    start = line * line_slots + below(draws, line_slots - shared.chunk_size + 1)
    return Addresses(start, np.zeros_like(start), negative(draws) & shared.signs)


def _words(shared: SharedSpec, state: U64, pool: PoolSpec) -> Addresses:
    """WORDS: each chunk draws one line of U words; byte u of the next draws rotates and negates word u."""
    chunks, hashes, size = shared.num_chunks, shared.num_hashes, shared.chunk_size
    per_chunk = 1 + -(-hashes // 8)
    first = (np.arange(chunks, dtype=np.uint64) * np.uint64(per_chunk))[None, :, None]
    word = np.arange(hashes, dtype=np.uint64)[None, None, :]
    line = below(draw(state, first), pool.slots // (hashes * size))
    fields = draw(state, first + np.uint64(1) + word // np.uint64(8))
    field = (fields >> (word % np.uint64(8) * np.uint64(8))) & np.uint64(0xFF)
    start = line * (hashes * size) + word.astype(np.int64) * size
    rotation = (field & np.uint64(size - 1)).astype(np.int64)
    return Addresses(start, rotation, (field >> np.uint64(7)).astype(np.bool_) & shared.signs)


def table_key(seed: int, name: str) -> int:
    """The 64-bit key of a table: BLAKE2b-64 of its name under the pool's seed, so that no two tables share addresses."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little")


def key_ids(keys: Sequence[str], num_embeddings: int) -> npt.NDArray[np.int64]:
    """String keys as ids: BLAKE2b-64 of the UTF-8 bytes, little-endian, modulo ``num_embeddings``. (len(keys),) int64."""
    hashes = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys]
    return (np.frombuffer(b"".join(hashes), dtype="<u8") % np.uint64(num_embeddings)).astype(np.int64)
