"""``HFHEmbedding`` and ``HFHEmbeddingBag``: where ``torch.nn.Embedding`` and ``EmbeddingBag`` stood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from hfh_embed.budget import Form
from hfh_embed.errors import SpecError
from hfh_embed.nn.pool import Pool
from hfh_embed.nn.table import Rows
from hfh_embed.spec import TableSpec

__all__ = ["HFHEmbedding", "HFHEmbeddingBag", "Lookup", "padding_id"]


class Lookup(nn.Module):
    """What the layers have in common: one table on a pool of its own (``ratio``) or on a shared one (``pool``, ``name``).

    Attributes:
        row_dtype: what rows are given in, for models of fewer bits; None for float32, or float64 where the values are. ``to`` sets it.
    """

    row_dtype: torch.dtype | None = None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None,
        *,
        ratio: float | None = None,
        pool: Pool | None = None,
        name: str | None = None,
        form: Form | str | None = None,
        frequencies: Any = None,
        least_uses: int | None = None,
        std: float | None = None,
        master: str | None = None,
        seed: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        padding = padding_id(padding_idx, num_embeddings)
        self.named = name is not None
        own_name = name or "table"
        if (ratio is None) == (pool is None):
            raise SpecError("give either a ratio, for a pool of this table's own, or the pool that it shares")
        if pool is None:
            assert ratio is not None
            counts = None if frequencies is None else {own_name: frequencies}
            shapes = {own_name: (num_embeddings, embedding_dim)}
            own_std, own_master = 1.0 if std is None else std, master or "float32"
            pool = Pool.for_tables(
                shapes,
                ratio,
                form=form,
                frequencies=counts,
                least_uses=least_uses,
                seed=seed,
                std=own_std,
                master=own_master,
            )
        elif any(given is not None for given in (form, frequencies, least_uses, master)) or seed:
            raise SpecError(
                "form, frequencies, least_uses, seed and master belong to the pool; give them to Pool.for_tables"
            )
        spec = _planned(pool, own_name, num_embeddings, embedding_dim).replace(padding_id=padding)
        self._take(Rows(spec, pool, pool.std if std is None else std))
        if device is not None or dtype is not None:
            self.to(device=device, dtype=dtype)

    def _take(self, table: Rows) -> None:
        self.table = table
        self.num_embeddings, self.embedding_dim = table.spec.num_embeddings, table.spec.embedding_dim
        self.padding_idx = table.spec.padding_id

    @classmethod
    def _of(cls, table: Rows, **attributes: Any) -> Self:
        """A layer over a table that exists already."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.named = True
        layer._take(table)
        for name, value in attributes.items():
            setattr(layer, name, value)
        return layer

    @property
    def spec(self) -> TableSpec:
        """The table's facts."""
        return self.table.spec

    @property
    def pool(self) -> Pool | None:
        """The pool that the table reads."""
        return self.table.pool

    @property
    def nbytes(self) -> int:
        """Stored bytes of everything on the pool, or of the table where it has none."""
        from hfh_embed.layout import SnapshotSpec

        return self.pool.nbytes if self.pool is not None else SnapshotSpec((self.spec,)).nbytes

    @property
    def ratio(self) -> float:
        """Dense bytes over stored bytes, of everything on the pool."""
        return self.pool.ratio if self.pool is not None else self.spec.dense_nbytes / self.nbytes

    @property
    def weight(self) -> Tensor:
        """The dense (N, D) matrix, computed anew at each access and as large as a dense table: for small tables and tests."""
        return self.table.rows(torch.arange(self.num_embeddings, device=self._device()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        dtype = fn(torch.empty(0, dtype=self.row_dtype or torch.float32)).dtype
        self.row_dtype = None if dtype == torch.float32 else dtype
        return self

    def _given(self, rows: Tensor) -> Tensor:
        return rows if self.row_dtype is None else rows.to(self.row_dtype)

    def _device(self) -> torch.device:
        return next(iter([*self.parameters(), *self.buffers()])).device

    def _unique_rows(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The distinct ids (n,), their rows (n, D), and where each id's row is: what batches repeat is computed once."""
        distinct, inverse = torch.unique(ids.reshape(-1).long(), return_inverse=True)
        return distinct, self.table.rows(distinct), inverse.view(ids.shape)

    def extra_repr(self) -> str:
        padding = f", padding_idx={self.padding_idx}" if self.padding_idx is not None else ""
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, ratio={self.ratio:.1f}"


class HFHEmbedding(Lookup):
    """``torch.nn.Embedding`` whose rows are computed from a pool that is ``ratio`` times smaller.

    Args:
        num_embeddings, embedding_dim, padding_idx: as ``nn.Embedding``; the padding row is zero and gets no gradient.
        max_norm, norm_type, scale_grad_by_freq, sparse: not supported, refused unless left as they are.
        ratio: dense bytes / stored bytes, for a pool of this table's own.
        pool, name: a pool from :meth:`Pool.for_tables` and the name this table has there.
        form, frequencies, least_uses, seed, master: see :meth:`Pool.for_tables`.
        std: standard deviation of initial rows; 1.0 as ``nn.Embedding``, or the pool's.
        device, dtype: as ``nn.Embedding``.

    Shape: ids (*) of int32 or int64 to (*, D).

    Raises:
        RatioError, SpecError: the description is impossible.
        UnknownIdError (an IndexError): an id outside the table; on the CPU, where looking does not wait for a device.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        **options: Any,
    ) -> None:
        _refuse(max_norm=max_norm, norm_type=norm_type != 2.0, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse)
        super().__init__(num_embeddings, embedding_dim, padding_idx, **options)

    def forward(self, input: Tensor) -> Tensor:
        """Rows (*, D) of ids (*)."""
        self.table.check(input)
        if self.table.is_cheap():
            return self._given(self.table.rows(input.reshape(-1).long()).view(*input.shape, self.embedding_dim))
        _, rows, inverse = self._unique_rows(input)
        return self._given(nn.functional.embedding(inverse, rows))

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        *,
        ratio: float,
        frequencies: Any = None,
        least_uses: int = 0,
        name: str = "table",
        seed: int = 0,
    ) -> Self:
        """A compressed form of a trained (N, D) table. Codes stay fixed; without ``freeze`` what they name can be trained.

        ``frequencies`` and ``least_uses`` are those of :func:`hfh_embed.codec.compress`.
        """
        _refuse(max_norm=max_norm, norm_type=norm_type != 2.0, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse)
        table = _fitted(
            embeddings, ratio, frequencies, least_uses, padding_id(padding_idx, len(embeddings)), name, seed
        )
        return cls._of(table).requires_grad_(not freeze)


class HFHEmbeddingBag(Lookup):
    """``torch.nn.EmbeddingBag`` whose rows are computed from a pool; arguments as :class:`HFHEmbedding`.

    ``mode`` ("sum", "mean", "max"), ``include_last_offset``, ``padding_idx``, offsets and ``per_sample_weights`` are torch's own.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        **options: Any,
    ) -> None:
        _refuse(
            max_norm=max_norm,
            norm_type=norm_type != 2.0,
            scale_grad_by_freq=scale_grad_by_freq,
            sparse=sparse,
            _weight=_weight is not None,
        )
        _check_mode(mode)
        super().__init__(num_embeddings, embedding_dim, padding_idx, **options)
        self.mode, self.include_last_offset = mode, include_last_offset

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """One row for each bag, (bags, D): of 1-D ids with offsets, or of 2-D ids, a bag a row."""
        self.table.check(input)
        padding = None
        if self.padding_idx is None and self.table.is_cheap():
            rows = self.table.rows(input.reshape(-1).long())
            inverse = torch.arange(input.numel()).view(input.shape)
        else:
            distinct, rows, inverse = self._unique_rows(input)
        if self.padding_idx is not None:
            found = torch.nonzero(distinct == self.padding_idx)
            padding = int(found[0, 0]) if len(found) else None
        if not len(rows):  # torch wants a row to look at even when nothing is looked up
            rows = rows.new_zeros(1, self.embedding_dim)
        weights = None if per_sample_weights is None else per_sample_weights.to(rows.dtype)
        bags = nn.functional.embedding_bag(
            inverse,
            rows,
            None if offsets is None else offsets.long(),
            mode=self.mode,
            per_sample_weights=weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )
        return self._given(bags)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        ratio: float,
        frequencies: Any = None,
        least_uses: int = 0,
        name: str = "table",
        seed: int = 0,
    ) -> Self:
        """A compressed form of a trained (N, D) table; see :meth:`HFHEmbedding.from_pretrained`."""
        _refuse(max_norm=max_norm, norm_type=norm_type != 2.0, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse)
        _check_mode(mode)
        table = _fitted(
            embeddings, ratio, frequencies, least_uses, padding_id(padding_idx, len(embeddings)), name, seed
        )
        return cls._of(table, mode=mode, include_last_offset=include_last_offset).requires_grad_(not freeze)


def _fitted(
    embeddings: Tensor, ratio: float, frequencies: Any, least_uses: int, padding: int | None, name: str, seed: int
) -> Rows:
    """A table whose rows are the given ones, compressed."""
    from hfh_embed.codec import compress

    rows = embeddings.detach().float().cpu().numpy()
    snapshot = compress(
        rows,
        ratio=ratio,
        name=name,
        frequencies=frequencies,
        least_uses=least_uses,
        padding_id=padding,
        seed=seed,
    )
    data = snapshot.spec.data(name, snapshot.arrays)
    return Rows(data.table, None, loaded=data).to(embeddings.device)


def _planned(pool: Pool, name: str, num_embeddings: int, embedding_dim: int) -> TableSpec:
    spec = pool.plan.table(name)
    if (spec.num_embeddings, spec.embedding_dim) != (num_embeddings, embedding_dim):
        raise SpecError(
            f"the pool was planned for table {name!r} of {spec.num_embeddings} x {spec.embedding_dim}, "
            f"not {num_embeddings} x {embedding_dim}"
        )
    return spec


def padding_id(padding_idx: int | None, num_embeddings: int) -> int | None:
    """The padding id; negative ones count from the end, as in torch."""
    if padding_idx is None:
        return None
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise SpecError(f"padding_idx is {padding_idx}; the table has ids 0 to {num_embeddings - 1}")
    return padding_idx % num_embeddings


def _refuse(**given: Any) -> None:
    for name, value in given.items():
        if value:
            raise SpecError(f"{name} is not supported here; leave it out")


def _check_mode(mode: str) -> None:
    if mode not in ("sum", "mean", "max"):
        raise SpecError(f"mode is {mode!r}; allowed are sum, mean and max")
