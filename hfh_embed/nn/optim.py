"""Optimizers for pools: they step through the lines that a batch touched, and through nothing else.

An ordinary torch optimizer works on a pool too, but needs a gradient of the whole pool and reads and writes every value at
every step. These take the gradients of rows as the backward pass left them, sum them line by line in the processor's cache,
and update and round each line in the same pass. Where that is not possible (a pool on a GPU, another form than the line
form, no compiled kernels, several processes) they take the whole gradient and do the same arithmetic in torch.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hfh_embed.errors import SpecError
from hfh_embed.nn.compiled import CompiledPool, is_line_form
from hfh_embed.nn.memory import spread_out
from hfh_embed.nn.pool import Pool
from hfh_embed.nn.rounding import noisily_rounded

__all__ = ["PoolAdam", "PoolSGD"]


class _PoolOptimizer(torch.optim.Optimizer):
    """The pools of a model; everything else in it needs an optimizer of its own."""

    def __init__(self, pools: Pool | nn.Module | Iterable[Pool], defaults: dict[str, Any]) -> None:
        if isinstance(pools, nn.Module):
            pools = [module for module in pools.modules() if isinstance(module, Pool)]
        self._pools = {id(pool.store.values): pool for pool in pools if pool.spec is not None}
        if not self._pools:
            raise SpecError(
                "no pool to optimize; give pools, or a model that has one. Tables whose ids all have rows of their own have none: "
                "give their parameters to torch's optimizers"
            )
        if not defaults["lr"] > 0:
            raise SpecError(f"lr is {defaults['lr']!r}; give a positive number")
        self._left: dict[int, tuple[int, int]] = {}  # the values as the last step by lines left them
        super().__init__([pool.store.values for pool in self._pools.values()], defaults)
        for pool in self._pools.values():
            if (compiled := _by_lines(pool)) is not None:
                compiled.taker = weakref.ref(self)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, those that were collected for lines included."""
        super().zero_grad(set_to_none)
        for pool in self._pools.values():
            if pool.compiled is not None:
                pool.compiled.collected.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; the values must be those that the state was saved with."""
        super().load_state_dict(state_dict)
        # torch brings moments to the values' own precision, which may be less than theirs.
        values = [value for group in self.param_groups for value in group["params"]]
        places = [place for group in state_dict["param_groups"] for place in group["params"]]
        for place, value in zip(places, values, strict=True):
            for name, held in state_dict["state"].get(place, {}).items():
                if isinstance(held, Tensor):
                    self.state[value][name] = held.to(value.device, copy=True)
        self._left.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every pool that got gradients since the last ``zero_grad``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for values in group["params"]:
                pool = self._pools[id(values)]
                compiled = _by_lines(pool)
                if compiled is not None and len(compiled.collected):
                    if values.grad is None:
                        self._step_lines(pool, compiled, group)
                        continue
                    values.grad += compiled.take_gradient()
                if values.grad is not None:
                    self._step_dense(values, values.grad, group)
        return loss

    def _step_lines(self, pool: Pool, compiled: CompiledPool, group: dict[str, Any]) -> None:
        values, state = pool.store.values, self.state[pool.store.values]
        now = (values._version, values.data_ptr())
        # A float, not a tensor: torch would load it in the values' own precision.
        if "sum_of_squares" not in state or self._left.get(id(values), now) != now:
            parts = torch.split(
                values.detach().reshape(-1), 2**20
            )  # in pieces: float64 of the whole would be twice its memory
            state["sum_of_squares"] = sum(float(part.double().square().sum()) for part in parts)
        stored = compiled.stored()
        state["step"] = state.get("step", 0) + 1
        state["sum_of_squares"] += self._update(compiled, stored, state, group)
        torch.autograd.graph.increment_version(values)
        mean = max(state["sum_of_squares"], 0.0) / values.numel()
        pool.store.know_rms(torch.tensor(math.sqrt(mean), dtype=torch.float64))
        compiled.keep_stored()
        self._left[id(values)] = (values._version, values.data_ptr())

    def _update(self, compiled: CompiledPool, stored: Any, state: dict[str, Any], group: dict[str, Any]) -> float:
        raise NotImplementedError

    def _step_dense(self, values: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[values]
        state["step"] = state.get("step", 0) + 1
        if values.dtype != torch.bfloat16:
            return self._move(values, grad, state, group)
        wide = values.float()
        self._move(wide, grad.float(), state, group)
        values.copy_(noisily_rounded(wide, state["step"]))
        return None

    def _move(self, values: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError


class PoolSGD(_PoolOptimizer):
    """Gradient descent on pools.

    bfloat16 masters are rounded up or down at random, right on average, so that small steps count too.

    Args:
        pools: a pool, several, or a model whose pools are meant.
        lr: the learning rate.
    """

    def __init__(self, pools: Pool | nn.Module | Iterable[Pool], lr: float) -> None:
        super().__init__(pools, {"lr": lr})

    def _update(self, compiled: CompiledPool, stored: Any, state: dict[str, Any], group: dict[str, Any]) -> float:
        return compiled.collected.sgd(compiled.values(), stored, group["lr"], state["step"], torch.get_num_threads())

    def _move(self, values: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        values.add_(grad, alpha=-group["lr"])


class PoolAdam(_PoolOptimizer):
    """Adam on pools, lazily: the moments of a line stay as they are while it is not touched, as in torch's SparseAdam.

    Moments are float32, also where masters are bfloat16, which are rounded as by :class:`PoolSGD`.

    Args:
        pools: a pool, several, or a model whose pools are meant.
        lr, betas, eps: as ``torch.optim.SparseAdam``.
    """

    def __init__(
        self,
        pools: Pool | nn.Module | Iterable[Pool],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise SpecError(f"betas are {betas!r}; give two numbers from 0 up to, but below, 1")
        if not eps > 0:
            raise SpecError(f"eps is {eps!r}; give a positive number")
        super().__init__(pools, {"lr": lr, "betas": betas, "eps": eps})

    def _moments(self, values: Tensor, state: dict[str, Any], group: dict[str, Any]) -> float:
        """The learning rate with both bias corrections; the moments are there afterwards."""
        dtype = torch.promote_types(values.dtype, torch.float32)
        for name in ("first_moment", "second_moment"):
            if name not in state:
                state[name] = spread_out(*values.shape, dtype=dtype, device=values.device).zero_()
        beta1, beta2 = group["betas"]
        return float(group["lr"]) * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])

    def _update(self, compiled: CompiledPool, stored: Any, state: dict[str, Any], group: dict[str, Any]) -> float:
        rate = self._moments(compiled.store.values, state, group)
        first, second = (state[name].reshape(-1).numpy() for name in ("first_moment", "second_moment"))
        beta1, beta2 = group["betas"]
        return compiled.collected.adam(
            compiled.values(),
            first,
            second,
            stored,
            rate,
            beta1,
            beta2,
            group["eps"],
            state["step"],
            torch.get_num_threads(),
        )

    def _move(self, values: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        rate = self._moments(values, state, group)
        beta1, beta2 = group["betas"]
        touched = grad != 0
        first, second = state["first_moment"], state["second_moment"]
        first.copy_(torch.where(touched, first * beta1 + grad * (1 - beta1), first))
        second.copy_(torch.where(touched, second * beta2 + grad.square() * (1 - beta2), second))
        values.sub_(torch.where(touched, rate * first / (second.sqrt() + group["eps"]), 0))


def _by_lines(pool: Pool) -> CompiledPool | None:
    """The pool's compiled path, if all its tables have the line form."""
    compiled = pool.compiled_path()
    if compiled is None or pool.spec is None:
        return None
    shared = [table.shared for table in pool.plan.tables if table.shared is not None]
    return compiled if all(is_line_form(part, pool.spec.bits) for part in shared) else None
