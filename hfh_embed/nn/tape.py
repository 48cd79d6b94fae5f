"""What rows read out of large parameters, kept apart, so that the gradient of a tile of rows costs what the tile costs.

Autograd makes a gradient as large as the parameter for everything that is gathered from it. While a :class:`Tape` is open,
gathered values are leaves of the graph instead; their gradients are added where they were read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

__all__ = ["Tape", "gathered"]

_open = threading.local()
Adder = Callable[[Tensor, Tensor], None]


class Tape:
    """Gradients of rows, summed over tiles. Open it (``with``) around the making of a tile's rows, then :meth:`back`.

    Args:
        parameters: what gets a gradient.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = {id(p): p for p in parameters if p.requires_grad}
        self._sums: dict[int, Tensor] = {}
        self._leaves: list[tuple[Tensor, Tensor, Adder]] = []
        self._graph: Any = None

    @staticmethod
    def current() -> Tape | None:
        """The tape that is open in this thread."""
        return getattr(_open, "tape", None)

    def __enter__(self) -> Self:
        _open.tape, self._graph = self, torch.enable_grad()
        self._graph.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        _open.tape = None
        self._graph.__exit__(*raised)

    def leaf(self, parameter: Tensor, read: Tensor, adder: Adder) -> Tensor:
        """``read`` as a leaf; ``adder(sum, gradient)`` will add the leaf's gradient to the parameter's."""
        if id(parameter) not in self._parameters:
            return read.detach()
        leaf = read.detach().requires_grad_()
        self._leaves.append((parameter, leaf, adder))
        return leaf

    def back(self, rows: Tensor, grads: Tensor) -> None:
        """Send the gradients of rows (n, D) back to everything they were made of."""
        whole: list[Tensor] = list(self._parameters.values())
        leaves, self._leaves = self._leaves, []
        if not rows.requires_grad:
            return
        inputs = [*whole, *(leaf for _, leaf, _ in leaves)]
        found = torch.autograd.grad(rows, inputs, grads.to(rows.dtype), allow_unused=True)
        for parameter, grad in zip(whole, found[: len(whole)], strict=True):
            if grad is not None:
                self._sum(parameter).add_(grad)
        for (parameter, _, adder), grad in zip(leaves, found[len(whole) :], strict=True):
            if grad is not None:
                adder(self._sum(parameter), grad)

    def _sum(self, parameter: Tensor) -> Tensor:
        if id(parameter) not in self._sums:
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            self._sums[id(parameter)] = torch.zeros_like(parameter, dtype=dtype)
        return self._sums[id(parameter)]

    def gradients(self, parameters: list[nn.Parameter]) -> list[Tensor | None]:
        """What was summed up, None where nothing was read."""
        sums = ((parameter, self._sums.get(id(parameter))) for parameter in parameters)
        return [None if total is None else total.to(parameter.dtype) for parameter, total in sums]


def gathered(parameter: Tensor, places: Tensor, flat: bool = False) -> Tensor:
    """parameter[places], rows of a 2-D parameter or with ``flat`` its single values; on the tape where one is open."""
    if (tape := Tape.current()) is not None:
        read = (parameter.view(-1) if flat else parameter).detach().index_select(0, places)

        def add(total: Tensor, grad: Tensor) -> None:
            (total.view(-1) if flat else total).index_add_(0, places, grad.to(total.dtype))

        return tape.leaf(parameter, read, add)
    if flat:
        return parameter.view(-1).index_select(0, places)
    return nn.functional.embedding(places, parameter)
