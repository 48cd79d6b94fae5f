"""The compiled kernels in training: rows out of the pool's packed values, as a snapshot gives them, and gradients by line.

Autograd would make a gradient as large as the pool for every table that reads it. Here all tables' rows hang on one *gate*,
a scalar that stands for the pool's values: their backward passes collect (ids, gradients of rows), and the gate's, which
autograd runs last, makes one gradient of them. A pool optimizer (``optim.py``) takes what was collected as it is instead.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hfh_embed.kernels import native_chosen
from hfh_embed.nn.tape import Tape
from hfh_embed.spec import LINE_BITS, Locality, Reconstruction, SharedSpec

Masters = npt.NDArray[np.float32] | npt.NDArray[np.uint16]

if TYPE_CHECKING:
    from hfh_embed.kernels._native import Table
    from hfh_embed.kernels.native_backend import Facts
    from hfh_embed.nn.pool import Pool

__all__ = ["CompiledPool", "is_line_form", "several_processes"]


def is_line_form(shared: SharedSpec, bits: int) -> bool:
    """Whether a shared part reads whole lines of a 1-bit pool in words: what a pool optimizer steps through."""
    words = shared.locality is Locality.WORDS and shared.num_hashes in (4, 8, 16)
    return bits == 1 and words and shared.num_hashes * shared.chunk_size == LINE_BITS


def several_processes() -> bool:
    """Whether this is one of several processes that train together."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class CompiledPool:
    """What a pool's compiled path keeps between calls. Made by the pool where :meth:`serves` says so."""

    def __init__(self, pool: Pool) -> None:
        from hfh_embed.kernels._native import Gradients

        assert pool.spec is not None
        self._spec, self.store = pool.spec, pool.store
        self._tables: dict[SharedSpec, Table] = {}
        self._stored: npt.NDArray[np.uint8] | None = None
        self._stored_of: tuple[int, int] | None = None
        self._gate: Tensor | None = None
        self._gate_of: Tensor | None = None
        self.collected = Gradients(pool.spec.slots)
        self.taker: weakref.ref[object] | None = None  # the optimizer that takes what is collected

    @staticmethod
    def serves(pool: Pool) -> bool:
        """Whether the kernels can do this pool's work: they are installed, and sum float32 or bfloat16 values on the CPU."""
        if pool.spec is None or pool.spec.reconstruction is not Reconstruction.SUM:
            return False
        values = pool.store.values
        return (
            native_chosen()
            and values.device.type == "cpu"
            and values.dtype in (torch.float32, torch.bfloat16)
            and not torch.compiler.is_compiling()
        )

    @property
    def is_taken(self) -> bool:
        """Whether an optimizer wants the collected gradients, so that none is made of the whole pool.

        Several processes average whole gradients, so there the optimizer has to do with those.
        """
        return self.taker is not None and self.taker() is not None and not several_processes()

    def values(self) -> Masters:
        """The masters, (S,), shared with the parameter: float32, or bfloat16 as uint16."""
        values = self.store.values.detach().reshape(-1)
        narrow = values.dtype == torch.bfloat16
        array: Masters = values.view(torch.int16).numpy().view(np.uint16) if narrow else values.numpy()
        return array

    def stored(self) -> npt.NDArray[np.uint8]:
        """The values' bytes as a snapshot holds them, made anew when the values have changed."""
        from hfh_embed.kernels._native import pack

        values, bits = self.values(), self._spec.bits
        now = (self.store.values._version, self.store.values.data_ptr())
        if self._stored_of == now and self._stored is not None:
            return self._stored
        if bits >= 16:
            floats = self.store.values.detach().float().reshape(-1).numpy()
            self._stored = (floats.astype(np.float16) if bits == 16 else floats).view(np.uint8)
            self._tables.clear()  # they point at the bytes
        else:
            if self._stored is None:
                self._stored = np.empty(self._spec.slots * bits // 8, dtype=np.uint8)
            pack(values, bits, float(self.store.table_half_step()), self._stored, torch.get_num_threads())
        self._stored_of = now
        return self._stored

    def keep_stored(self) -> None:
        """Say that the bytes were changed together with the values."""
        self._stored_of = (self.store.values._version, self.store.values.data_ptr())

    def rows(self, shared: SharedSpec, ids: Tensor, multiplier: float, factor: float) -> Tensor:
        """``multiplier`` times the summed levels of ids (B,), (B, dim). ``factor`` is what a value counts in a row's gradient."""
        table, facts = self.table(shared, multiplier)
        ids = ids.contiguous()
        values = self.store.values
        if (tape := Tape.current()) is not None:
            return tape.leaf(values, _computed(table, ids, shared.dim), self._adder(facts, ids, factor))
        if not (torch.is_grad_enabled() and values.requires_grad):
            return _computed(table, ids, shared.dim)
        if self._gate is None or self._gate_of is not values:
            self._gate, self._gate_of = _Gate.apply(values, weakref.ref(self)), values  # type: ignore[no-untyped-call]
        rows: Tensor = _Rows.apply(self._gate, self, table, facts, ids, factor)  # type: ignore[no-untyped-call]
        return rows

    def table(self, shared: SharedSpec, multiplier: float) -> tuple[Table, Facts]:
        """The kernels' view of the rows that a shared part has now."""
        from hfh_embed.kernels._native import Table
        from hfh_embed.kernels.native_backend import shared_facts

        stored, facts = self.stored(), shared_facts(shared, self._spec)
        if (table := self._tables.get(shared)) is None:
            table = self._tables[shared] = Table(2**63 - 1, shared.dim, shared.dim, -1, False, False)
            table.set_shared(*facts, stored, 1.0)
        table.set_scale(multiplier)
        return table, facts

    def _adder(self, facts: Facts, ids: Tensor, factor: float) -> Callable[[Tensor, Tensor], None]:
        """What adds the gradients of the rows of ids to a gradient of the values."""
        from hfh_embed.kernels._native import Gradients

        def add(total: Tensor, grads: Tensor) -> None:
            tile = Gradients(self._spec.slots)
            tile.add(*facts, ids.numpy(), grads.float().contiguous().numpy(), factor)
            tile.into(total.view(-1).numpy(), torch.get_num_threads())

        return add

    def collect(self, facts: Facts, ids: Tensor, grads: Tensor, factor: float) -> None:
        """Take the gradients of rows (B, dim)."""
        # An optimizer looks at the ids later, when a loop may have filled their memory with the next batch.
        kept = ids.clone() if self.is_taken else ids
        self.collected.add(*facts, kept.numpy(), grads.float().contiguous().numpy(), factor)

    def gradient(self) -> Tensor | None:
        """What was collected as one gradient of the values, (1, S); None when an optimizer takes it."""
        if self.is_taken or not len(self.collected):
            return None
        return self.take_gradient()

    def take_gradient(self) -> Tensor:
        """What was collected, as a gradient of the values."""
        values = self.store.values
        gradient = torch.zeros_like(values, dtype=torch.float32)
        self.collected.into(gradient.reshape(-1).numpy(), torch.get_num_threads())
        self.collected.clear()
        return gradient.to(values.dtype)


def _computed(table: Table, ids: Tensor, dim: int) -> Tensor:
    from hfh_embed.kernels._native import recycled

    rows = torch.from_numpy(recycled(len(ids), dim))
    table.rows(ids.numpy(), rows.numpy(), torch.get_num_threads())
    return rows


class _Gate(torch.autograd.Function):
    """A zero that stands for a pool's values; its backward pass runs when all rows' have run."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, compiled: weakref.ref[CompiledPool]) -> Tensor:
        ctx.compiled = compiled  # weak, since the pool keeps the gate
        return values.new_zeros((), dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        compiled = ctx.compiled()
        return (compiled.gradient() if compiled is not None else None), None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        compiled: CompiledPool,
        table: Table,
        facts: Facts,
        ids: Tensor,
        factor: float,
    ) -> Tensor:
        ctx.compiled, ctx.facts, ctx.factor = compiled, facts, factor
        ctx.save_for_backward(ids)
        return _computed(table, ids, facts[3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        ctx.compiled.collect(ctx.facts, ctx.saved_tensors[0], grads[0], ctx.factor)
        return grads[0].new_zeros(()), None, None, None, None, None
