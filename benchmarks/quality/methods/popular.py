"""Methods that spend bytes by importance: pruning by magnitude, frequency splits à la CAFE, mixed dimensions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.quality.methods.base import Arrays, Joined, Shapes, TooSmallError, floats, hashed
from benchmarks.quality.methods.rows import HALF_STEPS
from hfh_embed.nn.rounding import levels

__all__ = ["HotRows", "MixedDimensions", "Pruned", "rice"]

PRUNING_EPOCHS = 3


class Pruned(Joined):
    """Magnitude pruning, cubic schedule (arXiv 1710.01878) over the first epochs; what is left in 8 bits, trained with rounding.

    Stored are the values that are left and the gaps between their places in the flat table, Rice-coded.
    """

    settles = PRUNING_EPOCHS

    def __init__(self, shapes: Shapes, ratio: float, seed: int) -> None:
        super().__init__(shapes)
        entries, bits = shapes.total * shapes.dim, 8 * (shapes.budget(ratio) - 8)
        kept = entries
        while kept and kept * (8 + 2 + math.log2(entries / kept)) > bits:
            kept = int(kept * 0.995)
        if kept < 1:
            raise TooSmallError("no entry can be kept")
        self.kept = kept
        self.masters = nn.Parameter(torch.randn(shapes.total, shapes.dim) * shapes.std)
        self.register_buffer("mask", torch.ones(shapes.total, shapes.dim, dtype=torch.bool))

    def rows(self, ids: Tensor) -> Tensor:
        values = nn.functional.embedding(ids, self.masters)
        half_step = self._half_step()
        return levels(values, half_step, 8) * half_step * self.mask[ids]

    def _half_step(self) -> Tensor:
        left = self.masters.detach()[self.mask]
        return (left.square().mean().sqrt() * HALF_STEPS[8]).clamp_min(1e-12)

    @torch.no_grad()
    def before_step(self, step: int, per_epoch: int) -> None:
        last = PRUNING_EPOCHS * per_epoch - 1
        every = max(1, per_epoch // 10)
        if step > last or (step % every and step != last):
            return
        density = self.kept / self.mask.numel()
        now = density + (1 - density) * (1 - step / last) ** 3
        flat = self.masters.abs().flatten()
        self.mask.copy_(
            _largest(flat, self.kept if step == last else max(self.kept, int(now * flat.numel()))).view_as(self.mask)
        )
        self.masters.mul_(self.mask)

    @torch.no_grad()
    def arrays(self) -> Arrays:
        half_step = self._half_step()
        codes = ((levels(self.masters[self.mask], half_step, 8) + 255) / 2).numpy().astype(np.uint8)
        places = np.flatnonzero(self.mask.numpy())
        return {"codes": codes, "scale": half_step.numpy().reshape(1), "gaps": rice(np.diff(places, prepend=-1) - 1)}


def _largest(values: Tensor, count: int) -> Tensor:
    """A mask of the ``count`` largest values."""
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[values.topk(count, sorted=False).indices] = True
    return mask


def rice(gaps: np.ndarray) -> np.ndarray:
    """Rice code of non-negative integers, the parameter in the first byte: quotients in unary, then remainders."""
    low = max(0, int(np.log2(max(1.0, gaps.mean() * math.log(2)))))
    quotients = gaps >> low
    unary = np.zeros(int(quotients.sum()) + len(gaps), dtype=np.uint8)
    unary[np.cumsum(quotients + 1) - 1] = 1
    remainders = (gaps[:, None] >> np.arange(low)) & 1
    bits = np.packbits(np.concatenate((unary, remainders.reshape(-1).astype(np.uint8))), bitorder="little")
    return np.concatenate((np.array([low], dtype=np.uint8), bits))


class HotRows(Joined):
    """CAFE (arXiv 2312.03256): ids of large gradients have exact rows, all others share hashed ones.

    Seven tenths of the bytes for exact rows and their ids. Importance is the decayed sum of gradient norms, kept for every id
    while training (the paper's sketch saves that memory); ids are promoted and demoted four times an epoch.
    """

    def __init__(self, shapes: Shapes, ratio: float, seed: int) -> None:
        super().__init__(shapes)
        budget = shapes.budget(ratio)
        hot = min(shapes.total, int(0.7 * budget) // (4 * shapes.dim + 4))
        buckets = (budget - hot * (4 * shapes.dim + 4)) // (4 * shapes.dim)
        if hot < 1 or buckets < 1:
            raise TooSmallError("one exact and one shared row are too much")
        self.exact = nn.Parameter(torch.zeros(hot, shapes.dim))
        self.common = nn.Parameter(torch.randn(buckets, shapes.dim) * shapes.std)
        self.register_buffer("places", hashed(shapes.total, buckets, seed), persistent=False)
        self.register_buffer("owners", torch.full((hot,), -1))
        self.register_buffer("slots", torch.full((shapes.total,), -1))
        self.register_buffer("importance", torch.zeros(shapes.total), persistent=False)
        self._looked: list[tuple[Tensor, Tensor]] = []

    def rows(self, ids: Tensor) -> Tensor:
        slots = self.slots[ids]
        exact = nn.functional.embedding(slots.clamp_min(0), self.exact)
        rows = torch.where((slots >= 0)[:, None], exact, nn.functional.embedding(self.places[ids], self.common))
        if rows.requires_grad:
            rows.retain_grad()
            self._looked.append((ids, rows))
        return rows

    def after_backward(self) -> None:
        for ids, rows in self._looked:
            if rows.grad is not None:
                self.importance.index_add_(0, ids, rows.grad.norm(dim=1))
        self._looked.clear()

    @torch.no_grad()
    def before_step(self, step: int, per_epoch: int) -> None:
        if not step or step % max(1, per_epoch // 4):
            return
        chosen = self.importance.topk(len(self.owners)).indices
        stays = torch.zeros(self.total, dtype=torch.bool)
        stays[chosen] = True
        free = torch.nonzero((self.owners < 0) | ~stays[self.owners.clamp_min(0)]).flatten()
        new = chosen[self.slots[chosen] < 0][: len(free)]
        free = free[: len(new)]
        old = self.owners[free]
        self.slots[old[old >= 0]] = -1
        self.owners[free], self.slots[new] = new, free
        self.exact[free] = self.common[self.places[new]]
        self.importance.mul_(0.7)

    def arrays(self) -> Arrays:
        return floats(exact=self.exact, common=self.common) | {"owners": self.owners.numpy().astype(np.int32)}


class MixedDimensions(Joined):
    """Mixed dimension embeddings (arXiv 1909.11810): an id's dimension grows with its frequency to the power 0.3 of the paper.

    Ids of one dimension share a map to D; those that can afford none share one row. Ids are taken to be numbered by
    frequency already, so that finding a row costs no byte.
    """

    def __init__(self, shapes: Shapes, ratio: float, seed: int) -> None:
        super().__init__(shapes)
        dims = _dimensions(shapes.joined_counts, shapes.dim, shapes.budget(ratio))
        present = [d for d in sorted(set(dims.tolist())) if d]
        self.common = nn.Parameter(torch.randn(shapes.dim) * shapes.std)
        self.own, self.maps = nn.ParameterList(), nn.ParameterList()
        place = np.zeros(shapes.total, dtype=np.int64)
        for d in present:
            mine = np.flatnonzero(dims == d)
            place[mine] = np.arange(len(mine))
            spread = shapes.std if d == shapes.dim else 1.0
            self.own.append(nn.Parameter(torch.randn(len(mine), d) * spread))
            if d < shapes.dim:
                self.maps.append(nn.Parameter(torch.randn(d, shapes.dim) * shapes.std / math.sqrt(d)))
        self.register_buffer("dims", torch.from_numpy(dims), persistent=False)
        self.register_buffer("place", torch.from_numpy(place), persistent=False)

    def rows(self, ids: Tensor) -> Tensor:
        dims, place = self.dims[ids], self.place[ids]
        out = self.common.expand(len(ids), self.dim)
        for number, own in enumerate(self.own):
            mine = torch.nonzero(dims == own.shape[1]).flatten()
            rows = nn.functional.embedding(place[mine], own)
            if own.shape[1] < self.dim:
                rows = rows @ self.maps[number]
            out = out.index_copy(0, mine, rows)
        return out

    def arrays(self) -> Arrays:
        named = {f"own{n}": value for n, value in enumerate(self.own)} | {
            f"map{n}": value for n, value in enumerate(self.maps)
        }
        return floats(common=self.common, **named)


def _dimensions(counts: np.ndarray, dim: int, budget: int) -> np.ndarray:
    """Each id's dimension, 0 or a power of two up to ``dim``, for at most ``budget`` bytes."""
    popularity = (counts / max(1, counts.max())) ** 0.3
    best = None
    for factor in np.geomspace(1e-2, 100, 400):
        wanted = factor * dim * popularity
        dims = np.where(wanted < 1, 0, 2 ** np.floor(np.log2(np.maximum(wanted, 1)))).astype(np.int64)
        dims = np.minimum(dims, dim)
        maps = sum(d * dim for d in set(dims.tolist()) if 0 < d < dim)
        if 4 * (int(dims.sum()) + maps + dim) > budget:
            break
        best = dims
    if best is None or not best.any():
        raise TooSmallError("no id can have a dimension of its own")
    return best
