"""Choosing the next id: the largest logits, or a draw from their softmax, tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor

from hfh_embed.nn.tiles import Tiled

__all__ = ["draw", "largest"]

NUCLEUS = 256
"""Candidates at first, doubled until they hold ``top_p`` of the probability."""
CANDIDATES = 2**18
"""Candidates that are held together, of all tokens, unless one token has more."""


@torch.no_grad()
def largest(tiled: Tiled, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of hidden (B, D) and their ids, (B, k) each, best first."""
    values = torch.empty(len(hidden), 0, dtype=tiled.wide, device=hidden.device)
    ids = torch.empty(len(hidden), 0, dtype=torch.long, device=hidden.device)
    for begin, found in tiled.sweep(hidden):
        best, where = found.topk(min(k, found.shape[1]), dim=1)
        values, ids = torch.cat((values, best), dim=1), torch.cat((ids, where + begin), dim=1)
        values, order = values.topk(min(k, values.shape[1]), dim=1)
        ids = ids.gather(1, order)
    return values, ids


@torch.no_grad()
def draw(
    tiled: Tiled,
    hidden: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Tensor:
    """One id for every hidden state (B, D): (B,). One uniform number is drawn for each, whatever the limits."""
    if not len(hidden):
        return torch.empty(0, dtype=torch.long, device=hidden.device)
    if temperature == 0:
        return largest(tiled, hidden, 1)[1][:, 0]
    uniform = torch.rand(len(hidden), dtype=torch.float64, device=hidden.device, generator=generator)
    if top_k is not None:
        values, ids = largest(tiled, hidden, top_k)
        return _drawn(values, ids, temperature, top_p, uniform)
    if top_p is not None:
        return _from_nucleus(tiled, hidden, temperature, top_p, uniform)
    return _from_all(tiled, hidden, temperature, uniform)


def _drawn(values: Tensor, ids: Tensor, temperature: float, top_p: float | None, uniform: Tensor) -> Tensor:
    """An id out of candidates, best first, with probabilities of their softmax cut at ``top_p``."""
    cumulated = (values.double() / temperature).softmax(1).cumsum(1)
    held = cumulated[:, -1:]
    if top_p is not None:
        last = (cumulated < top_p).sum(1, keepdim=True).clamp_max(values.shape[1] - 1)
        held = cumulated.gather(1, last)
    place = torch.searchsorted(cumulated, uniform[:, None] * held, right=True).clamp_max(values.shape[1] - 1)
    return ids.gather(1, place)[:, 0]


def _from_nucleus(tiled: Tiled, hidden: Tensor, temperature: float, top_p: float, uniform: Tensor) -> Tensor:
    """The nucleus is rarely large: take more candidates until they hold ``top_p``, for the tokens that need them."""
    drawn = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
    waiting = torch.arange(len(hidden), device=hidden.device)
    lse = _tile_masses(tiled, hidden, temperature).logsumexp(1)
    count = min(NUCLEUS, tiled.size)
    while len(waiting):
        unfinished = []
        for left in torch.split(waiting, max(1, CANDIDATES // count)):
            values, ids = largest(tiled, hidden[left], count)
            cumulated = (values.double() / temperature - lse[left, None]).exp().cumsum(1)
            enough = (cumulated[:, -1] >= top_p) | (count == tiled.size)
            cut = (cumulated < top_p).sum(1, keepdim=True).clamp_max(count - 1)
            bound = uniform[left, None] * cumulated.gather(1, cut)
            place = torch.searchsorted(cumulated, bound, right=True).clamp_max(count - 1)
            drawn[left[enough]] = ids.gather(1, place)[enough, 0]
            unfinished.append(left[~enough])
        waiting, count = torch.cat(unfinished), min(2 * count, tiled.size)
    return drawn


def _tile_masses(tiled: Tiled, hidden: Tensor, temperature: float) -> Tensor:
    """log(sum(exp(logits / temperature))) of every tile, (B, tiles) float64."""
    masses = [
        (tiled.logits(hidden, begin, rows).double() / temperature).logsumexp(1) for begin, rows in tiled.tiles(hidden)
    ]
    return torch.stack(masses, dim=1)


def _from_all(tiled: Tiled, hidden: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """First the tile in which the drawn number lies, then the id in the tile."""
    cumulated = _tile_masses(tiled, hidden, temperature).softmax(1).cumsum(1)
    bound = uniform * cumulated[:, -1]
    tile = torch.searchsorted(cumulated, bound[:, None], right=True)[:, 0].clamp_max(cumulated.shape[1] - 1)
    before = torch.where(tile > 0, cumulated.gather(1, (tile - 1).clamp_min(0)[:, None])[:, 0], 0)
    share = cumulated.gather(1, tile[:, None])[:, 0] - before
    within = ((bound - before) / share).clamp(0, 1)
    edges = tiled.edges(len(hidden), hidden.device)
    drawn = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
    for number in torch.unique(tile).tolist():
        tokens = torch.nonzero(tile == number)[:, 0]
        begin, end = edges[number], edges[number + 1]
        rows = tiled.rows(begin, end, hidden.device).to(tiled.dtype)
        inside = (tiled.logits(hidden[tokens], begin, rows).double() / temperature).softmax(1).cumsum(1)
        place = torch.searchsorted(inside, within[tokens, None] * inside[:, -1:], right=True)
        drawn[tokens] = begin + place[:, 0].clamp_max(end - begin - 1)
    return drawn
