"""The pool in torch: the trainable values that all tables share, its reconstruction network and the residual networks."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from hfh_embed.budget import PRESETS, Form, Frequencies, Shapes, plan
from hfh_embed.errors import SpecError
from hfh_embed.layout import Array, SnapshotSpec
from hfh_embed.nn.addressing import slots_and_signs
from hfh_embed.nn.compiled import CompiledPool
from hfh_embed.nn.memory import spread_out
from hfh_embed.nn.rounding import Scaling, StoredValues, levels, rounded_rms, widened
from hfh_embed.nn.tape import gathered
from hfh_embed.spec import PoolSpec, PrivateRole, Reconstruction, TableSpec

__all__ = ["Pool", "Residual", "form_of", "shared_std"]

MASTERS = {"float32": None, "bfloat16": torch.bfloat16}
PART = 2**24
BESIDE = 0.2
"""Initial spread of what is shared beside coefficients of an id's own, in units of theirs."""


def form_of(form: Form | str | None) -> Form | None:
    """A form given outright or by a preset's name."""
    if isinstance(form, str):
        if form not in PRESETS:
            raise SpecError(f"form {form!r} is not known; there are {', '.join(sorted(PRESETS))}")
        return PRESETS[form]
    return form


def _module_name(group: str) -> str:
    """A group's name without dots, which torch keeps for itself; names have no slashes."""
    return group.replace(".", "/")


class Residual(nn.Module):
    """e + W2 relu(W1 e + b1) + b2 on rows (B, D); zero at first, so that training begins from the plain row."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(dim, hidden))
        self.b1 = nn.Parameter(torch.zeros(hidden))
        self.w2 = nn.Parameter(torch.zeros(hidden, dim))
        self.b2 = nn.Parameter(torch.zeros(dim))
        nn.init.normal_(self.w1, std=math.sqrt(2 / dim))

    def forward(self, rows: Tensor) -> Tensor:
        return rows + (torch.relu(rows @ self.w1 + self.b1) @ self.w2 + self.b2)


class Pool(nn.Module):
    """One store of S values for all tables and layers that use it.

    Make one with :meth:`for_tables` and hand it to the layers; its parameters then count once, however many share it.

    Attributes:
        plan: what the pool was made for: every table and byte.
        spec: the pool's own facts, None for a plan without shared parts.
        std: standard deviation of initial rows.
        master: how values are held in training, "float32" or "bfloat16".
    """

    def __init__(self, plan: SnapshotSpec, std: float = 1.0, master: str = "float32") -> None:
        super().__init__()
        if master not in MASTERS:
            raise SpecError(f"master is {master!r}; allowed are {' and '.join(MASTERS)}")
        self.master = master
        if not std > 0:
            raise SpecError(f"std is {std!r}; give a positive number, nn.Embedding has 1.0")
        self.plan, self.std = plan, std
        self.spec: PoolSpec | None = plan.pools[0] if plan.pools else None
        self.residuals = nn.ModuleDict(
            {_module_name(name): Residual(dim, spec.hidden) for name, (spec, dim) in plan.residuals().items()}
        )
        self.frequencies: dict[str, object] = {}
        self.compiled: CompiledPool | None = None
        if self.spec is not None:
            self._make_values(self.spec)

    def _make_values(self, spec: PoolSpec) -> None:
        hashes = max(table.shared.num_hashes for table in self.plan.tables if table.shared is not None)
        # Row units: a learning rate means to the pool what it means to nn.Embedding.
        self.value_std = self.std / math.sqrt(hashes)
        values = spread_out(1, spec.slots, dtype=MASTERS[self.master])
        for part in torch.split(values, PART, dim=1):  # drawn as float32
            part.copy_(torch.randn(*part.shape, device=part.device).mul_(self.value_std))
        self.store = StoredValues(values, spec.bits, Scaling.TABLE)
        u, h = spec.num_hashes, spec.hidden
        if spec.reconstruction is Reconstruction.BILINEAR:
            self.linear = nn.Parameter(torch.ones(u))
            self.quadratic = nn.Parameter(torch.zeros(u, u))
        elif spec.reconstruction is Reconstruction.MLP:
            self.w1 = nn.Parameter(torch.randn(u, h) / math.sqrt(u))
            self.b1 = nn.Parameter(torch.zeros(h))
            self.w2 = nn.Parameter(torch.randn(h) / math.sqrt(h))
            self.b2 = nn.Parameter(torch.zeros(1))
            self._calibrate(spec)

    @torch.no_grad()
    def _calibrate(self, spec: PoolSpec) -> None:
        """Let the network see inputs of unit variance and give entries of unit variance around zero."""
        self.w1.div_(self.value_std / (1 if spec.bits > 8 else float(self.store.table_half_step())))
        drawn = torch.randn(4096, spec.num_hashes) * self.value_std
        out = self.network(levels(drawn, self.store.table_half_step(), spec.bits))
        self.w2.div_(out.std())
        self.b2.sub_(out.mean() / out.std())

    @classmethod
    def for_tables(
        cls,
        tables: Shapes,
        ratio: float,
        *,
        form: Form | str | None = None,
        frequencies: Frequencies | None = None,
        least_uses: int | None = None,
        seed: int = 0,
        std: float = 1.0,
        master: str = "float32",
    ) -> Pool:
        """A pool for a group of tables, with one ratio for all of them together.

        Args:
            tables: name -> (num_embeddings, embedding_dim).
            ratio: dense float32 bytes / stored bytes.
            form: how to spend the bytes, a :class:`hfh_embed.budget.Form` or the name of a preset; chosen from the ratio.
            frequencies: name -> how often each id is used in training, one number an id; whole numbers are counts. They decide where
                the bytes go.
            least_uses: ids with fewer uses are not kept: their rows are zeros, and the others have their bytes. By default 10 where
                frequencies are counts and unequal. 0 keeps all, as a table needs that also gives the logits of its ids.
            seed: of the hash functions; torch's own generator makes the initial values.
            std: standard deviation of initial rows; ``nn.Embedding`` has 1.0.
            master: how the pool's values are held while they are trained: "float32", or "bfloat16", half the memory and
                memory traffic, for :class:`~hfh_embed.nn.PoolSGD` and :class:`~hfh_embed.nn.PoolAdam`, which round
                at random. Other optimizers would lose every step smaller than a 500th of a value.

        Raises:
            RatioError: the ratio cannot be met; its ``nearest`` can.
        """
        pool = cls(
            plan(tables, ratio, form=form_of(form), seed=seed, frequencies=frequencies, least_uses=least_uses),
            std,
            master,
        )
        pool.frequencies = dict(frequencies or {})
        return pool

    def compiled_path(self) -> CompiledPool | None:
        """The compiled kernels for this pool, None where they cannot do its work."""
        if not CompiledPool.serves(self):
            return None
        if self.compiled is None:
            self.compiled = CompiledPool(self)
        return self.compiled

    def __getstate__(self) -> dict[str, object]:
        """Without the compiled path, which belongs to these very values and is made again where it is needed."""
        return self.__dict__ | {"compiled": None}

    @property
    def nbytes(self) -> int:
        """Stored bytes of the pool and everything planned on it."""
        return self.plan.nbytes

    @property
    def ratio(self) -> float:
        """Dense bytes over stored bytes."""
        return self.plan.ratio

    def residual(self, group: str) -> Residual:
        """The residual network of this group."""
        network = self.residuals[_module_name(group)]
        assert isinstance(network, Residual)
        return network

    def extra_repr(self) -> str:
        slots = f"{self.spec.slots:,} slots of {self.spec.bits} bits, " if self.spec else ""
        return f"{len(self.plan.tables)} tables, {slots}{self.nbytes:,} bytes, ratio {self.ratio:.1f}"

    def initial_scale(self, table: TableSpec, std: float) -> float:
        """The scale that gives the shared part of this table's initial rows the standard deviation ``std``."""
        assert self.spec is not None
        assert table.shared is not None
        if self.spec.reconstruction is Reconstruction.MLP:
            return std
        rms = self.value_std * rounded_rms(self.spec.bits) * math.sqrt(table.shared.num_hashes)
        if self.spec.reconstruction is Reconstruction.BILINEAR and self.spec.bits <= 8:
            return std / rms * float(self.store.table_half_step())
        return std / rms

    def fetch_sum(self, table: TableSpec, ids: Tensor, scale: Tensor, weights: Tensor | None) -> Tensor:
        """scale * g(fetched values) of B ids: (B, shared.dim) float32. ``weights`` (B, U) multiply what each function fetched."""
        shared, spec = table.shared, self.spec
        assert shared is not None
        assert spec is not None
        if weights is None and (compiled := self.compiled_path()) is not None:
            return compiled.rows(shared, ids, float(self.multiplier(scale)), float(scale))
        slots, signs = slots_and_signs(shared, spec, ids)
        half_step = self.store.table_half_step()
        fetched = gathered(self.store.values, slots.reshape(-1), flat=True).view(slots.shape)
        v = levels(widened(fetched), half_step, spec.bits)
        if signs is not None:
            v = v * signs
        if weights is not None:
            v = v * weights[:, None, :, None]
        if spec.reconstruction is Reconstruction.SUM:
            return v.sum(dim=2).flatten(1)[:, : shared.dim] * self.multiplier(scale)
        entries = self.network(v.transpose(2, 3).flatten(1, 2)[:, : shared.dim])
        return entries * scale

    def multiplier(self, scale: Tensor) -> Tensor:
        """What sums are multiplied with, one float32: the table's scale, and the half step that levels are counted in."""
        assert self.spec is not None
        return scale * self.store.table_half_step() if self.spec.bits <= 8 else scale

    def network(self, v: Tensor) -> Tensor:
        """g of (..., U) fetched values, bilinear or MLP: (...,)."""
        assert self.spec is not None
        if self.spec.reconstruction is Reconstruction.BILINEAR:
            return v @ self.linear + ((v @ self.quadratic) * v).sum(dim=-1)
        return torch.tanh(v @ self.w1 + self.b1) @ self.w2 + self.b2

    def arrays(self) -> dict[str, Array]:
        """The stored arrays, by the names of :func:`hfh_embed.layout.pool_arrays`."""
        if self.spec is None:
            return {}
        values, _ = self.store.export()
        arrays: dict[str, Array] = {"values": values.reshape(-1)}
        names = {
            Reconstruction.SUM: (),
            Reconstruction.BILINEAR: ("linear", "quadratic"),
            Reconstruction.MLP: ("w1", "b1", "w2", "b2"),
        }[self.spec.reconstruction]
        for name in names:
            arrays[name] = getattr(self, name).detach().float().cpu().numpy().astype(np.float32)
        return arrays


def shared_std(table: TableSpec, std: float) -> float:
    """Initial standard deviation of the shared part of rows of ``std``.

    Beside coefficients of an id's own what is shared starts small: where ids are alike it is noise at first, and few-bit values do not
    shrink by themselves (docs/results.md).
    """
    return BESIDE * std if table.private is not None and table.private.role is PrivateRole.ADD else std
