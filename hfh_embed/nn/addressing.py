"""The hash functions of ``hfh_embed.hashing`` on torch's int64, bit for bit: products wrap, shifts to the right are masked."""

from __future__ import annotations

import torch
from torch import Tensor

from hfh_embed.hashing import GOLDEN
from hfh_embed.spec import LINE_BITS, Locality, PoolSpec, SharedSpec

__all__ = ["slots_and_signs"]


def _signed(value: int) -> int:
    """A 64-bit pattern as torch's signed number."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


def _shift(x: Tensor, by: int) -> Tensor:
    """An unsigned shift to the right."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's output function."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _draw(state: Tensor, n: Tensor) -> Tensor:
    return mix64(state + (n + 1) * _signed(GOLDEN))


def _below(draws: Tensor, m: int) -> Tensor:
    return _shift(_shift(draws, 32) * m, 32)


def slots_and_signs(shared: SharedSpec, pool: PoolSpec, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Every slot that B ids read, (B, C, U, Z) int64, and the sign of each fetch, (B, C, U, 1) float32; None without signs."""
    state = mix64(ids + _signed(shared.key))[:, None, None]
    chunks, hashes, size = shared.num_chunks, shared.num_hashes, shared.chunk_size
    rotation: Tensor | None = None
    grid = torch.arange(chunks * hashes, device=ids.device).view(1, chunks, hashes)
    if shared.locality in (Locality.FREE, Locality.ALIGNED):
        draws = _draw(state, grid)
        aligned = shared.locality is Locality.ALIGNED
        start = _below(draws, pool.slots // size if aligned else pool.slots - size + 1) * (size if aligned else 1)
        negative = draws & 1
    elif shared.locality is Locality.LINE:
        line_slots = LINE_BITS // pool.bits
        lines = _below(_draw(state, torch.arange(shared.lines, device=ids.device)), pool.slots // line_slots)
        draws = _draw(state, grid + shared.lines)
        turn = (grid % shared.lines).expand(len(ids), -1, -1)
        line = lines.expand(-1, chunks, -1).gather(2, turn)
        start = line * line_slots + _below(draws, line_slots - size + 1)
        negative = draws & 1
    else:
        per_chunk = 1 + -(-hashes // 8)
        first = (torch.arange(chunks, device=ids.device) * per_chunk)[None, :, None]
        word = torch.arange(hashes, device=ids.device)
        line = _below(_draw(state, first), pool.slots // (hashes * size))
        field = (_draw(state, first + 1 + word // 8) >> (word % 8 * 8)) & 0xFF
        start = line * (hashes * size) + word * size
        rotation, negative = field & (size - 1), field >> 7
    entries = torch.arange(size, device=ids.device)
    places = entries if rotation is None else (entries + rotation[..., None]) & (size - 1)
    signs = (1 - 2 * negative).to(torch.float32)[..., None] if shared.signs else None
    return start[..., None] + places, signs
