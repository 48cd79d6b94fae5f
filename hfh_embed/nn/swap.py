"""``compress``: swap the embeddings and output layers of an existing model for layers on a pool, or on codes of what they hold."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hfh_embed.budget import Form
from hfh_embed.errors import SpecError
from hfh_embed.nn.embedding import HFHEmbedding, HFHEmbeddingBag, Lookup
from hfh_embed.nn.pool import Pool
from hfh_embed.nn.vocabulary import VocabularyHead

__all__ = ["Report", "compress"]

Dense = nn.Embedding | nn.EmbeddingBag | nn.Linear


@dataclass(frozen=True)
class Report:
    """What was swapped: the tables' names, the output layers over them, and their bytes before and after.

    ``kept`` are embeddings and output layers left dense.
    """

    tables: tuple[str, ...]
    heads: tuple[str, ...]
    kept: tuple[str, ...]
    dense_nbytes: int
    nbytes: int

    @property
    def ratio(self) -> float:
        """Dense bytes over stored bytes."""
        return self.dense_nbytes / self.nbytes

    def __str__(self) -> str:
        lines = [f"tables: {', '.join(self.tables)}"]
        lines += [f"output layers: {', '.join(self.heads)}"] if self.heads else []
        lines += [f"left dense: {', '.join(self.kept)}"] if self.kept else []
        return "\n".join([*lines, f"{self.dense_nbytes:,} bytes became {self.nbytes:,} ({self.ratio:.1f}x)"])


@dataclass
class _Table:
    """One weight and all layers that hold it."""

    name: str
    weight: nn.Parameter
    embeddings: dict[str, nn.Embedding | nn.EmbeddingBag] = field(default_factory=dict)
    heads: dict[str, nn.Linear] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def std(self) -> float:
        return max(float(self.weight.detach().float().std()), 1e-8) if self.weight.numel() > 1 else 1.0


def compress(
    model: nn.Module,
    ratio: float,
    *,
    fit: bool = False,
    min_rows: int = 10_000,
    heads: Iterable[str] = (),
    form: Form | str | None = None,
    frequencies: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Report:
    """Replace every embedding of at least ``min_rows`` rows, and the output layers that belong to them, in place.

    An ``nn.Linear`` is an output layer if it shares its weight with an embedding, if ``get_output_embeddings`` of a
    transformers model gives it, or if ``heads`` names it; it becomes a :class:`VocabularyHead`, on the embedding's table if
    the two were tied. A module that is used in several places stays one module. Nothing is changed where an error is raised.

    Args:
        model: any module; models of Hugging Face transformers keep ``save_pretrained``, see ``hfh_embed.nn.transformers``.
        ratio: dense float32 bytes / stored bytes, of all tables together.
        fit: keep what the tables hold, as codes that are frozen (``requires_grad_`` trains on what they name). Otherwise
            rows are drawn anew, with the standard deviation of the weights they replace, to be trained.
        min_rows: smaller tables stay dense.
        heads: paths of further output layers.
        form: see :meth:`Pool.for_tables`; not with ``fit``.
        frequencies: table's name, which is its path in the model -> how often each id is used.
        seed: of the hash functions, or of fitting.

    A padding id's row is zero for bags and for rows drawn anew without an output layer; elsewhere it is a row like any other.

    Raises:
        SpecError: nothing to swap, or a layer that cannot be: it says which, why, and what to do.
        RatioError: the ratio cannot be met.
    """
    found = _found(model, min_rows, tuple(heads))
    tables = list(found.values())
    if fit and form is not None:
        raise SpecError("a form is for rows that are trained; leave it out with fit=True")
    unknown = sorted(set(frequencies or {}) - {table.name for table in tables})
    if unknown:
        raise SpecError(f"frequencies are given for {unknown[0]!r}; tables are {', '.join(t.name for t in tables)}")
    if fit:
        counts = frequencies or {}
        layers = [_fitted(table, ratio, counts.get(table.name), seed) for table in tables]
        dense, nbytes = sum(4 * t.weight.numel() for t in tables), sum(layer.nbytes for layer in layers)
    else:
        shapes = {table.name: table.shape for table in tables}
        least_uses = 0 if any(table.heads for table in tables) else None
        pool = Pool.for_tables(
            shapes, ratio, form=form, frequencies=frequencies, least_uses=least_uses, seed=seed, std=tables[0].std
        )
        layers = [_drawn(table, pool) for table in tables]
        dense, nbytes = pool.plan.dense_nbytes, pool.nbytes
    swapped: dict[int, nn.Module] = {}
    for table, layer in zip(tables, layers, strict=True):
        swapped |= _over(table, layer)
    kept = _kept(model, tables, swapped)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children shows a module used twice only once
            if id(child) in swapped:
                setattr(parent, name, swapped[id(child)])
    if "transformers" in sys.modules:
        from hfh_embed.nn.transformers import adopt

        adopt(model)
    names = tuple(path for table in tables for path in table.heads)
    return Report(tuple(t.name for t in tables), names, kept, dense, nbytes)


def _found(model: nn.Module, min_rows: int, named: tuple[str, ...]) -> dict[int, _Table]:
    """The tables to swap, by their weight's id, each with all layers that hold the weight."""
    modules = dict(model.named_modules())
    holders: dict[int, list[tuple[str, str, nn.Module]]] = {}
    for path, module in modules.items():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((path, name, module))
    outputs = _outputs(modules, min_rows, named)
    wanted = [
        module
        for module in [*modules.values(), *outputs]
        if module in outputs
        or (isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.num_embeddings >= min_rows)
    ]
    if not wanted:
        already = " beside the HFH layers that it has" if any(isinstance(m, Lookup) for m in modules.values()) else ""
        raise SpecError(f"the model has no embedding of at least {min_rows:,} rows{already}; lower min_rows")
    taken = {module.spec.name: path for path, module in modules.items() if isinstance(module, Lookup) and module.named}
    tables: dict[int, _Table] = {}
    for module in wanted:
        weight = module.weight
        if id(weight) in tables:
            continue
        table = _Table(holders[id(weight)][0][0], weight)
        if not table.name:
            raise SpecError("the model is itself the layer to swap; use HFHEmbedding or HFHEmbedding.from_pretrained")
        if table.name in taken:
            raise SpecError(f"{taken[table.name]!r} holds a table named {table.name!r} already; give it another name")
        for path, name, holder in holders[id(weight)]:
            _check(path, name, holder, table)
            if isinstance(holder, nn.Linear):
                table.heads[path] = holder
            else:
                assert isinstance(holder, nn.Embedding | nn.EmbeddingBag)
                table.embeddings[path] = holder
        _check_alike(table)
        tables[id(weight)] = table
    return tables


def _outputs(modules: Mapping[str, nn.Module], min_rows: int, named: tuple[str, ...]) -> list[nn.Linear]:
    """The output layers that were named, or that models of transformers tell of."""
    outputs = []
    for path in named:
        layer = modules.get(path)
        if not isinstance(layer, nn.Linear):
            what = f"is a {type(layer).__name__}" if layer is not None else "is not in the model"
            raise SpecError(f"heads names {path!r}, which {what}; give paths of nn.Linear layers")
        outputs.append(layer)
    for module in modules.values():
        if callable(tell := getattr(module, "get_output_embeddings", None)):
            try:
                layer = tell()
            except (AttributeError, NotImplementedError):
                continue
            if isinstance(layer, nn.Linear) and layer.out_features >= min_rows:
                outputs.append(layer)
    return outputs


FORWARDS = {nn.Embedding: nn.Embedding.forward, nn.EmbeddingBag: nn.EmbeddingBag.forward, nn.Linear: nn.Linear.forward}


def _check(path: str, name: str, module: nn.Module, table: _Table) -> None:
    """Refuse a layer that an HFH layer could not stand for."""
    kind = next((kind for kind in FORWARDS if isinstance(module, kind)), None)
    if kind is None or name != "weight":
        raise SpecError(
            f"the weight of {table.name!r} is shared with {path!r} ({type(module).__name__}), which would keep the dense table; "
            "only embeddings and nn.Linear layers can share one: untie it"
        )
    if type(module).forward is not FORWARDS[kind]:
        raise SpecError(
            f"{path!r} is a {type(module).__name__}, which computes something else than {kind.__name__}; replace it by hand"
        )
    for option in ("max_norm", "scale_grad_by_freq", "sparse"):
        if value := getattr(module, option, None):
            raise SpecError(f"{path!r} has {option}={value}, which HFH layers lack; build the model without it")
    if table.weight.is_meta:
        raise SpecError(
            f"{path!r} is on the meta device and holds no values; build or load the model on a real device first"
        )
    if not table.weight.is_floating_point():
        raise SpecError(f"{path!r} holds {table.weight.dtype}; compress the model before it is quantized")
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        raise SpecError(f"{path!r} has hooks, which would be lost; remove them, and register them again afterwards")


def _check_alike(table: _Table) -> None:
    """Refuse embeddings of one weight that differ in more than their place."""
    options = ("padding_idx", "mode", "include_last_offset")
    kinds = {(type(m), *(getattr(m, name, None) for name in options)): path for path, m in table.embeddings.items()}
    if len(kinds) > 1:
        raise SpecError(f"{' and '.join(map(repr, kinds.values()))} share a weight but not their options; untie them")


def _padding(table: _Table, fit: bool) -> int | None:
    """The padding id whose row is zero: an output layer needs a real row, and a trained row is kept."""
    first = next(iter(table.embeddings.values()), None)
    if first is None or (not isinstance(first, nn.EmbeddingBag) and (fit or table.heads)):
        return None
    return first.padding_idx


def _options(table: _Table) -> dict[str, Any]:
    """What a bag needs to know."""
    first = next(iter(table.embeddings.values()), None)
    if not isinstance(first, nn.EmbeddingBag):
        return {}
    return {"mode": first.mode, "include_last_offset": first.include_last_offset}


def _kind(table: _Table) -> type[HFHEmbedding] | type[HFHEmbeddingBag]:
    return HFHEmbeddingBag if _options(table) else HFHEmbedding


def _fitted(table: _Table, ratio: float, counts: Any, seed: int) -> Lookup:
    """A layer of codes for the weight's rows."""
    options: dict[str, Any] = {"ratio": ratio, "frequencies": counts, "name": table.name, "seed": seed}
    return _kind(table).from_pretrained(
        table.weight.detach(), padding_idx=_padding(table, True), **_options(table), **options
    )


def _drawn(table: _Table, pool: Pool) -> Lookup:
    """A layer of new rows."""
    options: dict[str, Any] = {"pool": pool, "name": table.name, "std": table.std, "device": table.weight.device}
    rows, dim = table.shape
    return _kind(table)(rows, dim, padding_idx=_padding(table, False), **_options(table), **options)


def _over(table: _Table, layer: Lookup) -> dict[int, nn.Module]:
    """By the id of each old layer, the one that takes its place."""
    if table.weight.dtype == torch.float64:
        layer.double()
    elif table.weight.dtype != torch.float32:
        layer.row_dtype = table.weight.dtype  # the values stay float32
    swapped: dict[int, nn.Module] = {}
    for embedding in table.embeddings.values():
        swapped[id(embedding)] = layer.train(embedding.training)
    for linear in table.heads.values():
        head = VocabularyHead(*table.shape, tie=layer, bias=linear.bias is not None)
        if linear.bias is not None:
            head.bias = linear.bias
        swapped[id(linear)] = head.train(linear.training)
    return swapped


def _kept(model: nn.Module, tables: list[_Table], swapped: Mapping[int, Any]) -> tuple[str, ...]:
    """Embeddings, and linear layers of a swapped embedding's shape, that stay dense."""
    shapes = {table.shape for table in tables}

    def is_table(module: nn.Module) -> bool:
        if isinstance(module, nn.Linear):
            return (module.out_features, module.in_features) in shapes
        return isinstance(module, nn.Embedding | nn.EmbeddingBag)

    return tuple(path for path, module in model.named_modules() if is_table(module) and id(module) not in swapped)
