"""What ``tiles.py`` does, by the compiled kernels.

The loss is theirs where the processor multiplies tiles (AMX): as exact as float32, and faster; rows of a few-bit pool are whole
numbers before their scale, which the kernels multiply in a third of the products. The logits of a few tokens are theirs too: a row is
multiplied as soon as it is made, and never written to memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hfh_embed.kernels import native_chosen
from hfh_embed.nn.compiled_table import coded_kernel, whole_table
from hfh_embed.nn.table import Rows
from hfh_embed.nn.tape import Tape
from hfh_embed.spec import Reconstruction

if TYPE_CHECKING:
    from hfh_embed.nn.tiles import Loss, Tiled

__all__ = ["compiled_losses", "serves_losses"]

LEAST_TOKENS = 16
"""Fewer leave most of a tile empty."""
MOST_FEW, FEW_LOGITS = 8, 2**16
"""Tokens that are few, and their logits that are held together."""
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


@torch.no_grad()
def few_logits(tiled: Tiled, hidden: Tensor) -> Iterator[tuple[int, Tensor]] | None:
    """First id and logits (B, n) of some ids after the other, for few hidden states (B, D); None where that is not for here."""
    if tiled.dtype != torch.float32 or hidden.device.type != "cpu" or not 0 < len(hidden) <= MOST_FEW:
        return None
    if not native_chosen() or torch.compiler.is_compiling() or (products := _products(tiled.table)) is None:
        return None
    states, count, padding = hidden.detach().contiguous(), FEW_LOGITS // len(hidden), tiled.table.spec.padding_id

    def tiles() -> Iterator[tuple[int, Tensor]]:
        for begin in range(0, tiled.size, count):
            logits = torch.empty(len(states), min(count, tiled.size - begin))
            products(begin, states.numpy(), logits.numpy(), torch.get_num_threads())
            if padding is not None and begin <= padding < begin + logits.shape[1]:
                logits[:, padding - begin] = 0
            if tiled.bias is not None:
                logits += tiled.bias.detach()[begin : begin + logits.shape[1]]
            yield begin, logits

    return tiles()


def _products(table: Rows) -> Callable[..., None] | None:
    """The kernels' products of hidden states with the rows that a table has now; None where the kernels have not all of its parts."""
    spec, pool = table.spec, table.pool
    if spec.kept is not None:  # the kernels would multiply kept rows alone
        return None
    if spec.coded is not None or spec.trellis is not None:
        return None if (kernel := coded_kernel(table)) is None else kernel.products
    if spec.map is not None and spec.map.bands:
        return None
    if _is_plain(table) and spec.shared is not None and pool is not None and (compiled := pool.compiled_path()):
        return compiled.table(spec.shared, float(pool.multiplier(table.scale)))[0].products
    return whole_table(table).products


def _is_plain(table: Rows) -> bool:
    """Whether rows are the shared sum and nothing else."""
    spec, pool = table.spec, table.pool
    others = (spec.kept, spec.private, spec.exact, spec.levels, spec.map, spec.residual, spec.coded, spec.trellis)
    if spec.shared is None or pool is None or pool.spec is None or any(part is not None for part in others):
        return False
    return pool.spec.reconstruction is Reconstruction.SUM


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
    if not _is_plain(table) or spec.shared is None or pool is None or pool.spec is None or pool.spec.bits > 8:
        return None
    if spec.shared.num_hashes * (2**pool.spec.bits - 1) > WHOLE:
        return None
    return float(pool.multiplier(table.scale))


def _unscaled(rows: Tensor, scale: float | None) -> np.ndarray[Any, np.dtype[np.float32]]:
    whole = rows if scale is None else (rows / scale).round_()
    return whole.contiguous().numpy()
