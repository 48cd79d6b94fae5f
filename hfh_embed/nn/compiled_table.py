"""A table's rows by the compiled kernels, as a snapshot of it would have them: for rows that need no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from hfh_embed.kernels import native_chosen
from hfh_embed.layout import TableData

if TYPE_CHECKING:
    from hfh_embed.kernels._native import Table
    from hfh_embed.kernels.native_coded import NativeCodedKernel
    from hfh_embed.nn.table import Rows

__all__ = ["coded_kernel", "coded_rows", "whole_table"]

_made: WeakKeyDictionary[Any, tuple[Any, Any]] = WeakKeyDictionary()
"""What the kernels were made of, and they."""


def coded_rows(table: Rows, ids: Tensor) -> Tensor | None:
    """The rows of ids (B,) of a table with codes, (B, D) float32; None where they need a gradient or the kernels cannot do it."""
    trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in table.parameters())
    if trained or ids.device.type != "cpu" or (kernel := coded_kernel(table)) is None:
        return None
    rows = torch.empty(len(ids), table.spec.embedding_dim)
    kernel.rows(ids.detach().long().contiguous().numpy(), rows.numpy(), torch.get_num_threads())
    return rows


def coded_kernel(table: Rows) -> NativeCodedKernel | None:
    """The kernel of a table with codes, all of whose parts are its own: on a CPU, of float32 values."""
    if table.spec.shared is not None or table.spec.residual is not None:  # a changed pool would have to be packed again
        return None
    if not native_chosen() or torch.compiler.is_compiling():
        return None
    if any(value.dtype != torch.float32 or value.device.type != "cpu" for value in table.parameters()):
        return None
    from hfh_embed.kernels.native_coded import NativeCodedKernel

    kernel: NativeCodedKernel = _kept(table, NativeCodedKernel)
    return kernel


def whole_table(table: Rows) -> Table:
    """The compiled form of a table without codes."""
    from hfh_embed.kernels.native_backend import native_table

    native: Table = _kept(table, native_table)
    return native


def _kept(table: Rows, make: Callable[[TableData], Any]) -> Any:
    """What was made of the values that the table has now."""
    seen = tuple((id(value), value._version, value.data_ptr()) for value in (*table.parameters(), *table.buffers()))
    if _made.get(table, (None,))[0] != seen:
        _made[table] = seen, make(_data(table))
    return _made[table][1]


def _data(table: Rows) -> TableData:
    """The arrays of a table, as a snapshot would hold them, for the places of kept ids."""
    spec, pool = table.spec, table.pool
    arrays = table.arrays()
    if pool is not None and spec.shared is not None:
        arrays |= {f"pool.{name}": array for name, array in pool.arrays().items()}
    if pool is not None and spec.residual is not None:
        network = pool.residual(spec.residual.group)
        arrays |= {f"residual.{name}": value.detach().float().numpy() for name, value in network.named_parameters()}
    return TableData(spec.inner, pool.spec if pool is not None and spec.shared is not None else None, arrays)
