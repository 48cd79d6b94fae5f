"""Logits and cross entropy of a whole vocabulary, tile by tile: neither the table (V, D) nor the logits (B, V) are ever held.

The softmax is summed online (Milakov and Gimelshein, arXiv 1805.02867); the backward pass computes every tile's rows and
logits again, as in Cut Cross-Entropy (arXiv 2411.09009), but leaves no gradient out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hfh_embed.errors import InputError
from hfh_embed.nn.compiled_head import compiled_losses, few_logits, serves_losses
from hfh_embed.nn.table import Rows
from hfh_embed.nn.tape import Tape

__all__ = ["Loss", "Tiled", "check_finite", "logits", "token_losses"]

BLOCK = 512
"""Tokens whose logits are held together."""
TILE_FLOATS = {"cpu": 2**18}
"""Floats of a tile, of rows or of logits: what a core's cache holds; on other devices 2**24, enough to fill them."""


@dataclass(frozen=True)
class Tiled:
    """A table and a bias (V,) or None, in tiles; products are computed in ``dtype`` and summed up in ``wide``."""

    table: Rows
    bias: Tensor | None
    dtype: torch.dtype

    @property
    def wide(self) -> torch.dtype:
        """float64 for float64, else float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def size(self) -> int:
        """V."""
        return self.table.spec.num_embeddings

    def tile_rows(self, tokens: int, device: torch.device) -> int:
        """Rows of one tile."""
        room = TILE_FLOATS.get(device.type, 2**24)
        return max(1, room // max(self.table.spec.embedding_dim, min(tokens, BLOCK)))

    def edges(self, tokens: int, device: torch.device) -> list[int]:
        """Where tiles begin, and V."""
        return [*range(0, self.size, self.tile_rows(tokens, device)), self.size]

    def rows(self, begin: int, end: int, device: torch.device) -> Tensor:
        """The rows of a tile as they are computed, float32 or float64."""
        return self.table.rows(torch.arange(begin, end, device=device))

    def tiles(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(first id, rows) of every tile, in ``dtype``, without gradients."""
        edges = self.edges(len(hidden), hidden.device) if len(hidden) else []
        for begin, end in pairwise(edges):
            with torch.no_grad():
                rows = self.rows(begin, end, hidden.device).to(self.dtype)
            yield begin, rows

    def sweep(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(first id, logits (B, n)) over the whole vocabulary, without gradients."""
        if (few := few_logits(self, hidden)) is not None:
            yield from few
            return
        for begin, rows in self.tiles(hidden):
            yield begin, self.logits(hidden, begin, rows)

    def logits(self, hidden: Tensor, begin: int, rows: Tensor) -> Tensor:
        """Logits (B, n) of a tile, in ``wide``."""
        products = (hidden @ rows.T).to(self.wide)
        return products if self.bias is None else products.add_(self.bias[begin : begin + len(rows)])


@dataclass(frozen=True)
class Loss:
    """What a token costs: cross entropy with ``label_smoothing``, plus ``z_loss`` times the square of log(sum(exp(logits)))."""

    targets: Tensor
    label_smoothing: float = 0.0
    z_loss: float = 0.0


@dataclass(frozen=True)
class _Block:
    """Some tokens, and where in each tile their targets are."""

    where: slice
    order: Tensor
    bounds: list[int]
    targets: Tensor = field(repr=False)

    def hits(self, tile: int, begin: int) -> tuple[Tensor, Tensor]:
        """(tokens, columns) of the targets that lie in a tile."""
        found = self.order[self.bounds[tile] : self.bounds[tile + 1]]
        return found, self.targets[found] - begin


def _blocks(targets: Tensor, edges: list[int]) -> list[_Block]:
    limits = torch.tensor(edges, device=targets.device)
    blocks = []
    for first in range(0, len(targets), BLOCK):
        where = slice(first, first + BLOCK)
        ordered, order = targets[where].sort()
        blocks.append(_Block(where, order, torch.searchsorted(ordered, limits).tolist(), targets[where]))
    return blocks


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tiled: Tiled, loss: Loss, hidden: Tensor, bias: Tensor | None, *parameters: nn.Parameter
    ) -> Tensor:
        h = hidden.detach().to(tiled.dtype)
        edges = tiled.edges(len(h), h.device)
        blocks = _blocks(loss.targets, edges)
        lse = torch.full((len(h),), -torch.inf, dtype=torch.float64, device=h.device)
        own = torch.empty(len(h), dtype=tiled.wide, device=h.device)
        total = torch.zeros(h.shape[1], dtype=torch.float64, device=h.device)
        for tile, (begin, rows) in enumerate(tiled.tiles(h)):
            total += rows.sum(0, dtype=tiled.wide)
            for block in blocks:
                found = tiled.logits(h[block.where], begin, rows)
                lse[block.where] = torch.logaddexp(lse[block.where], found.logsumexp(1).double())
                tokens, columns = block.hits(tile, begin)
                own[block.where][tokens] = found[tokens, columns]
        lse = lse.to(tiled.wide)
        ctx.tiled, ctx.loss = tiled, loss
        ctx.save_for_backward(hidden, lse, bias, *parameters)
        result = lse - (1 - loss.label_smoothing) * own
        if loss.label_smoothing:
            mean = h.double() @ total / tiled.size
            if bias is not None:
                mean = mean + bias.detach().double().mean()
            result -= loss.label_smoothing * mean.to(tiled.wide)
        if loss.z_loss:
            result += loss.z_loss * lse.square()
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        hidden, lse, _, *parameters = ctx.saved_tensors
        tiled, loss, weight = ctx.tiled, ctx.loss, grads[0]
        h = hidden.to(tiled.dtype)
        edges = tiled.edges(len(h), h.device)
        blocks = _blocks(loss.targets, edges)
        spread = weight * (1 + 2 * loss.z_loss * lse) if loss.z_loss else weight
        hit, everywhere = weight * (1 - loss.label_smoothing), weight * (loss.label_smoothing / tiled.size)

        def tile_grads(tile: int, begin: int, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
            for block in blocks:
                where = block.where
                p = tiled.logits(h[where], begin, rows).sub_(lse[where, None]).exp_().mul_(spread[where, None])
                if loss.label_smoothing:
                    p -= everywhere[where, None]
                tokens, columns = block.hits(tile, begin)
                p[tokens, columns] -= hit[where][tokens]
                yield where, p

        return None, None, *_back(tiled, h, hidden.dtype, parameters, ctx.needs_input_grad[2:], tile_grads)


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tiled: Tiled, hidden: Tensor, bias: Tensor | None, *parameters: nn.Parameter) -> Tensor:
        h = hidden.detach().to(tiled.dtype)
        ctx.tiled = tiled
        ctx.save_for_backward(hidden, *parameters)
        out = torch.empty(len(h), tiled.size, dtype=tiled.dtype, device=h.device)
        for begin, rows in tiled.tiles(h):
            for first in range(0, len(h), BLOCK):
                where = slice(first, first + BLOCK)
                out[where, begin : begin + len(rows)] = tiled.logits(h[where], begin, rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        hidden, *parameters = ctx.saved_tensors
        tiled = ctx.tiled

        def tile_grads(tile: int, begin: int, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
            for first in range(0, len(hidden), BLOCK):
                where = slice(first, first + BLOCK)
                yield where, grads[0][where, begin : begin + len(rows)].to(tiled.wide)

        h = hidden.to(tiled.dtype)
        return None, *_back(tiled, h, hidden.dtype, parameters, ctx.needs_input_grad[1:], tile_grads)


def _back(
    tiled: Tiled,
    h: Tensor,
    dtype: torch.dtype,
    parameters: list[nn.Parameter],
    needs: tuple[bool, ...],
    tile_grads: Any,
) -> tuple[Tensor | None, ...]:
    """Gradients of (hidden, bias, *parameters) from those of logits, block by block in every tile."""
    tape = Tape([p for p, needed in zip(parameters, needs[2:], strict=True) if needed])
    hidden_grad = torch.zeros(h.shape, dtype=tiled.wide, device=h.device) if needs[0] else None
    bias_grad = torch.zeros(tiled.size, dtype=tiled.wide, device=h.device) if needs[1] else None
    edges = tiled.edges(len(h), h.device)
    if not len(h):
        return (
            hidden_grad,
            bias_grad,
            *(torch.zeros_like(p) if n else None for p, n in zip(parameters, needs[2:], strict=True)),
        )
    with torch.autocast(h.device.type, enabled=False):
        for tile, (begin, end) in enumerate(pairwise(edges)):
            with tape:
                rows = tiled.rows(begin, end, h.device)
            fixed = rows.detach().to(tiled.dtype)
            row_grads = torch.zeros(fixed.shape, dtype=tiled.wide, device=h.device)
            for where, grad in tile_grads(tile, begin, fixed):
                if bias_grad is not None:
                    bias_grad[begin:end] += grad.sum(0)
                rounded = grad.to(tiled.dtype)
                if hidden_grad is not None:
                    _add_product(hidden_grad[where], rounded, fixed)
                _add_product(row_grads, rounded.T, h[where])
            tape.back(rows, row_grads)
    given = None if hidden_grad is None else hidden_grad.to(dtype)
    given_bias = None if bias_grad is None or tiled.bias is None else bias_grad.to(tiled.bias.dtype)
    return given, given_bias, *tape.gradients(parameters)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, without another tensor where the dtypes allow it."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _parameters(tiled: Tiled) -> list[nn.Parameter]:
    return [parameter for parameter in tiled.table.parameters() if parameter.requires_grad]


def token_losses(tiled: Tiled, hidden: Tensor, loss: Loss) -> Tensor:
    """What every token of hidden (B, D) costs: (B,) in ``wide``, with gradients."""
    if serves_losses(tiled, hidden):
        return compiled_losses(tiled, hidden, loss, _parameters(tiled))
    with torch.autocast(hidden.device.type, enabled=False):
        result: Tensor = _TokenLosses.apply(tiled, loss, hidden, tiled.bias, *_parameters(tiled))  # type: ignore[no-untyped-call]
    return result


def logits(tiled: Tiled, hidden: Tensor) -> Tensor:
    """All logits of hidden (B, D): (B, V) in ``dtype``, with gradients."""
    with torch.autocast(hidden.device.type, enabled=False):
        result: Tensor = _Logits.apply(tiled, hidden, tiled.bias, *_parameters(tiled))  # type: ignore[no-untyped-call]
    return result


def check_finite(hidden: Tensor) -> None:
    """InputError naming the first rows of hidden (B, D) that hold an infinity or a NaN."""
    fine = torch.isfinite(hidden).all(dim=1)
    if not bool(fine.all()):
        wrong = torch.nonzero(~fine).reshape(-1).tolist()
        shown = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
        raise InputError(
            f"{len(wrong)} of {len(hidden)} hidden states are not finite, in rows {shown}; "
            "look for an overflow or a division by zero before the head"
        )
