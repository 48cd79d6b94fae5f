"""Settings of the library's one form: HFH itself, and the published methods that it generalises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.methods.base import SGD_RATES, Embedding, Joined, Shapes, TooSmallError
from hfh_embed import nn as hnn
from hfh_embed.budget import Form
from hfh_embed.errors import RatioError

__all__ = ["SIXTEEN_WORDS", "Apart", "Default", "Formed", "Lean", "line_form", "private_form"]

SIXTEEN_WORDS = Form(num_hashes=16, chunk_size=32)
LARGE_FIELD = 1000


class Formed(Joined):
    """One long table of a form, of the form that a function gives for (ratio, D), or of the one that frequencies choose (None)."""

    def __init__(
        self,
        shapes: Shapes,
        ratio: float,
        seed: int,
        form: Form | Callable[[float, int], Form] | None,
        master: str = "float32",
    ) -> None:
        super().__init__(shapes)
        if form is not None and not isinstance(form, Form):
            form = form(ratio, shapes.dim)
        try:
            self.table = hnn.HFHEmbedding(
                shapes.total,
                shapes.dim,
                ratio=ratio,
                form=form,
                seed=seed,
                std=shapes.std,
                master=master,
                frequencies=shapes.joined_counts,
            )
        except RatioError as error:
            raise TooSmallError(str(error)) from error

    def rows(self, ids: Tensor) -> Tensor:
        return self.table.table.rows(ids)

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        return self.table.nbytes


class Default(Embedding):
    """What a user gets who gives the ratio and nothing else: a table for each field, all on one pool."""

    def __init__(self, shapes: Shapes, ratio: float, seed: int) -> None:
        super().__init__()
        self.dim = shapes.dim
        sizes = {field: (n, shapes.dim) for field, n in shapes.sizes.items()}
        try:
            self.pool = hnn.Pool.for_tables(sizes, ratio, seed=seed, std=shapes.std)
        except RatioError as error:
            raise TooSmallError(str(error)) from error
        self.tables = torch.nn.ModuleList([hnn.HFHEmbedding(*sizes[name], pool=self.pool, name=name) for name in sizes])
        self._number = {field: number for number, field in enumerate(shapes.sizes)}

    def forward(self, fields: tuple[str, ...], ids: Tensor) -> Tensor:
        rows = [self.tables[self._number[field]](ids[..., place]) for place, field in enumerate(fields)]
        return torch.stack(rows, dim=-2)

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        return self.pool.nbytes


class Apart(Joined):
    """The line of sixteen words with a pool for each large field, and one for all others."""

    def __init__(self, shapes: Shapes, ratio: float, seed: int) -> None:
        super().__init__(shapes)
        small = {field: n for field, n in shapes.sizes.items() if n < LARGE_FIELD}
        groups = [{field: n} for field, n in shapes.sizes.items() if n >= LARGE_FIELD] + ([small] if small else [])
        self._group, self._place = (
            torch.empty(shapes.total, dtype=torch.long),
            torch.empty(shapes.total, dtype=torch.long),
        )
        self.groups = torch.nn.ModuleList()
        for number, sizes in enumerate(groups):
            own = Shapes(sizes, shapes.dim, {field: shapes.counts[field] for field in sizes}, shapes.std)
            self.groups.append(Formed(own, ratio, seed, SIXTEEN_WORDS))
            ids = torch.cat([torch.arange(n) + self._starts[field] for field, n in sizes.items()])
            self._group[ids], self._place[ids] = number, torch.arange(own.total)

    def rows(self, ids: Tensor) -> Tensor:
        rows = torch.zeros(len(ids), self.dim)
        for number, group in enumerate(self.groups):
            mine = torch.nonzero(self._group[ids] == number).squeeze(1)
            if len(mine):
                rows = rows.index_copy(0, mine, group.rows(self._place[ids[mine]]))  # type: ignore[operator]
        return rows

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        return sum(group.nbytes for group in self.groups)  # type: ignore[misc]


class Lean(Formed):
    """The line with little memory to train in: bfloat16 masters, gradients of the lines that a batch touches, Adam's moments or none."""

    def __init__(self, shapes: Shapes, ratio: float, seed: int, form: Form, moments: bool) -> None:
        super().__init__(shapes, ratio, seed, form, "bfloat16")
        self._moments = moments

    def own_optimizer(self, rate: float) -> torch.optim.Optimizer:
        assert self.table.pool is not None
        return hnn.PoolAdam(self.table.pool, rate) if self._moments else hnn.PoolSGD(self.table.pool, SGD_RATES * rate)


def line_form(**more: Any) -> Form:
    """The line of 8 words of 64 slots, whatever the library's default is, so that rows of different times compare."""
    return Form(num_hashes=8, chunk_size=64, **more)


def private_form(ratio: float, dim: int, **more: Any) -> Form:
    """Few-bit coefficients of each id for at most four fifths of the bytes, in the first entries of a shared line.

    One bit each while they are fewer than D, in whole bytes; then 2 or more bits for every entry. None where a byte for each id is too much.
    """
    affordable = 0.8 * 32 * dim / ratio
    if affordable >= 2 * dim:
        return line_form(private_bits=max(bits for bits in (2, 4, 8, 16) if bits * dim <= affordable), **more)
    own = min(dim, int(affordable) // 8 * 8)
    return line_form(private_dim=own, private_bits=1 if own else 0, **more)
