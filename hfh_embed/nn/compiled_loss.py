"""The loss of ``tiles.py`` by the compiled kernels, where the processor multiplies tiles (AMX): as exact as float32, and faster.

Rows of a few-bit pool are whole numbers before their scale; the kernels multiply those in a third of the products.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hfh_embed.kernels import native_chosen
from hfh_embed.nn.table import Rows
from hfh_embed.nn.tape import Tape
from hfh_embed.spec import Reconstruction

if TYPE_CHECKING:
    from hfh_embed.nn.tiles import Loss, Tiled

__all__ = ["compiled_losses", "serves_losses"]

LEAST_TOKENS = 16
"""Fewer leave most of a tile empty."""
TILE_FLOATS, MOST_ROWS = 2**17, 4096
WHOLE = 256
"""Whole numbers up to this are exact in the kernels' eight bits."""


def serves_losses(tiled: Tiled, hidden: Tensor) -> bool:
    """Whether the kernels can do this: float32 on a CPU that has what they need."""
    if hidden.device.type != "cpu" or tiled.dtype != torch.float32 or len(hidden) < LEAST_TOKENS or not native_chosen():
        return False
    from hfh_embed.kernels import _native

    return _native.TILES and not torch.compiler.is_compiling()


def compiled_losses(tiled: Tiled, hidden: Tensor, loss: Loss, parameters: list[nn.Parameter]) -> Tensor:
    """What every token of hidden (B, D) costs, (B,), as ``tiles.token_losses``."""
    losses: Tensor = _CompiledLosses.apply(tiled, loss, hidden, tiled.bias, *parameters)  # type: ignore[no-untyped-call]
    return losses


class _CompiledLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tiled: Tiled, loss: Loss, hidden: Tensor, bias: Tensor | None, *parameters: nn.Parameter
    ) -> Tensor:
        from hfh_embed.kernels._native import Vocabulary

        h = hidden.detach().float().contiguous()
        kernel, scale, biases = Vocabulary(h.numpy()), _scale(tiled.table), _biases(tiled)
        total = torch.zeros(h.shape[1], dtype=torch.float64)
        for begin, end in pairwise(_edges(tiled)):
            rows = tiled.rows(begin, end, h.device)
            if loss.label_smoothing:
                total += rows.sum(0, dtype=torch.float64)
            kernel.forward(_unscaled(rows, scale), scale or 1.0, biases[begin:end], torch.get_num_threads())
        lse = torch.empty(len(h))
        kernel.normalizers(lse.numpy())
        own = (h.double() * tiled.table.rows(loss.targets).double()).sum(1)
        mean = h.double() @ total / tiled.size
        if bias is not None:
            own += bias.detach()[loss.targets]
            mean += bias.detach().double().mean()
        result = lse - (1 - loss.label_smoothing) * own.float()
        if loss.label_smoothing:
            result -= loss.label_smoothing * mean.float()
        if loss.z_loss:
            result += loss.z_loss * lse.square()
        ctx.tiled, ctx.loss = tiled, loss
        ctx.save_for_backward(hidden, lse, bias, *parameters)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        from hfh_embed.kernels._native import Vocabulary

        hidden, lse, _, *parameters = ctx.saved_tensors
        tiled, loss, needs = ctx.tiled, ctx.loss, ctx.needs_input_grad[2:]
        weight = grads[0].contiguous()
        counted = weight * (1 + 2 * loss.z_loss * lse)
        spread = weight * (loss.label_smoothing / tiled.size)
        hit = weight * (1 - loss.label_smoothing)
        targets = loss.targets.contiguous()
        h = hidden.detach().float().contiguous()
        kernel, scale, biases = Vocabulary(h.numpy()), _scale(tiled.table), _biases(tiled)
        tape = Tape([p for p, needed in zip(parameters, needs[2:], strict=True) if needed])
        bias_grads = torch.zeros(len(biases))
        for begin, end in pairwise(_edges(tiled)):
            with tape:
                rows = tiled.rows(begin, end, hidden.device)
            row_grads = torch.empty(rows.shape)
            kernel.backward(
                _unscaled(rows.detach(), scale),
                begin,
                scale or 1.0,
                biases[begin:end],
                lse.numpy(),
                counted.numpy(),
                spread.numpy(),
                hit.numpy(),
                targets.numpy(),
                row_grads.numpy(),
                bias_grads[begin:end].numpy(),
                torch.get_num_threads(),
            )
            tape.back(rows, row_grads)
        hidden_grads = torch.empty(hidden.shape)
        kernel.hidden_gradients(hidden_grads.numpy())
        return (
            None,
            None,
            hidden_grads.to(hidden.dtype) if needs[0] else None,
            bias_grads.to(tiled.bias.dtype) if needs[1] else None,
            *tape.gradients(parameters),
        )


def _edges(tiled: Tiled) -> list[int]:
    """Where tiles begin, and V: rows of whole cache lines, as many as the processor's own cache holds."""
    count = min(MOST_ROWS, max(64, TILE_FLOATS // tiled.table.spec.embedding_dim // 64 * 64))
    return [*range(0, tiled.size, count), tiled.size]


def _biases(tiled: Tiled) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = torch.zeros(0) if tiled.bias is None else tiled.bias.detach().float().contiguous()
    return values.numpy()


def _scale(table: Rows) -> float | None:
    """What the rows of this table are whole multiples of, up to ``WHOLE``; None where they are not."""
    spec, pool = table.spec, table.pool
    others = (spec.private, spec.exact, spec.map, spec.residual, spec.coded, spec.trellis)
    if spec.shared is None or pool is None or pool.spec is None or any(part is not None for part in others):
        return None
    if pool.spec.reconstruction is not Reconstruction.SUM or pool.spec.bits > 8:
        return None
    if spec.shared.num_hashes * (2**pool.spec.bits - 1) > WHOLE:
        return None
    return float(pool.multiplier(table.scale))


def _unscaled(rows: Tensor, scale: float | None) -> np.ndarray[Any, np.dtype[np.float32]]:
    whole = rows if scale is None else (rows / scale).round_()
    return whole.contiguous().numpy()
