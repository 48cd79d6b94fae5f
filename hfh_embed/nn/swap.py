"""``compress``: swap the embedding layers of an existing model for layers on one pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hfh_embed.budget import Form
from hfh_embed.errors import SpecError
from hfh_embed.nn.embedding import HFHEmbedding, HFHEmbeddingBag, Lookup
from hfh_embed.nn.pool import Pool

__all__ = ["Report", "compress"]


@dataclass(frozen=True)
class Report:
    """What was swapped: the tables' names, and their bytes before and after. ``kept`` are embeddings left dense."""

    tables: tuple[str, ...]
    kept: tuple[str, ...]
    dense_nbytes: int
    nbytes: int

    @property
    def ratio(self) -> float:
        """Dense bytes over stored bytes."""
        return self.dense_nbytes / self.nbytes


def compress(
    model: nn.Module, ratio: float, *, min_rows: int = 10_000, form: Form | str | None = None, seed: int = 0
) -> Report:
    """Replace every ``nn.Embedding`` and ``nn.EmbeddingBag`` of at least ``min_rows`` rows, in place, by layers on one pool.

    The new rows are drawn anew, with the standard deviation of the weights they replace, to be trained from scratch; a
    module that is used in several places stays one module. For a trained table see ``HFHEmbedding.from_pretrained``.

    Raises:
        SpecError: nothing to swap, a table whose weight other layers share, or arguments that HFH layers lack.
        RatioError: the ratio cannot be met.
    """
    found: dict[str, nn.Embedding | nn.EmbeddingBag] = {}
    kept = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            (found.__setitem__(path, module) if module.num_embeddings >= min_rows else kept.append(path))
    if not found:
        raise SpecError(f"the model has no embedding of at least {min_rows:,} rows; lower min_rows")
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for path, module in found.items():
        if owners[id(module.weight)] > 1:
            raise SpecError(
                f"the weight of {path!r} is shared with another layer, which would keep the dense table; untie it"
            )
    shapes = {path or "table": (module.num_embeddings, module.embedding_dim) for path, module in found.items()}
    first = next(iter(found.values()))
    pool = Pool.for_tables(shapes, ratio, form=form, seed=seed, std=_std(first))
    layers = {id(module): _layer(path or "table", module, pool) for path, module in found.items()}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children shows a module used twice only once
            if id(child) in layers:
                setattr(parent, name, layers[id(child)])
    return Report(tuple(found), tuple(kept), pool.plan.dense_nbytes, pool.nbytes)


def _std(module: nn.Embedding | nn.EmbeddingBag) -> float:
    return max(float(module.weight.detach().float().std()), 1e-8) if module.weight.numel() > 1 else 1.0


def _layer(name: str, module: nn.Embedding | nn.EmbeddingBag, pool: Pool) -> Lookup:
    options: dict[str, Any] = {"pool": pool, "name": name, "std": _std(module), "device": module.weight.device}
    common = (module.max_norm, module.norm_type, module.scale_grad_by_freq)
    if isinstance(module, nn.Embedding):
        sizes = (module.num_embeddings, module.embedding_dim, module.padding_idx)
        return HFHEmbedding(*sizes, *common, module.sparse, **options)
    return HFHEmbeddingBag(
        module.num_embeddings,
        module.embedding_dim,
        *common,
        module.mode,
        module.sparse,
        include_last_offset=module.include_last_offset,
        padding_idx=module.padding_idx,
        **options,
    )
