"""Models to snapshots and back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

import hfh_embed
from hfh_embed.errors import SpecError
from hfh_embed.layout import Array, SnapshotSpec
from hfh_embed.nn.embedding import HFHEmbedding, Lookup
from hfh_embed.nn.pool import Pool
from hfh_embed.nn.rounding import loaded_values
from hfh_embed.nn.table import Rows
from hfh_embed.nn.vocabulary import VocabularyHead
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import PrivateSpec, TableSpec

__all__ = ["layers_of", "load", "save", "snapshot_of"]


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    vocabularies: Mapping[str, Sequence[str]] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Snapshot:
    """Write every table of a model into one snapshot, each pool once, and return it as it is in memory.

    A table has the name it was given, or that of its module. A head that is tied to an embedding shares the embedding's table; a
    head's bias is a table (V, 1) named ``NAME.bias``. ``vocabularies`` maps table names to the key of each id.

    Raises:
        SpecError: the model has no tables, or two of one name.
    """
    snapshot = snapshot_of(model, vocabularies=vocabularies, metadata=metadata)
    snapshot.save(path)
    return snapshot


def snapshot_of(
    model: nn.Module,
    *,
    vocabularies: Mapping[str, Sequence[str]] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Snapshot:
    """The tables of a model as a snapshot in memory; see :func:`save`."""
    specs: list[TableSpec] = []
    arrays: dict[str, Array] = {}
    pools: dict[int, tuple[str, Pool]] = {}
    names: dict[int, str] = {}  # of tables that are written already
    for path, module in _layers(model):
        name = names.get(id(module.table)) or (module.spec.name if module.named else path or "table")
        if isinstance(module, VocabularyHead) and module.bias is not None:
            specs.append(TableSpec(f"{name}.bias", module.num_embeddings, 1, private=PrivateSpec(1, 32)))
            arrays[f"table/{name}.bias/private.values"] = module.bias.detach().float().cpu().numpy()[:, None]
        if id(module.table) in names:
            continue
        names[id(module.table)] = name
        spec = module.spec.replace(name=name)
        if module.pool is not None:
            pool_name, _ = pools.setdefault(id(module.pool), (f"pool{len(pools)}" if pools else "pool", module.pool))
            spec = _on_pool(spec, pool_name)
        if spec.residual is not None and module.spec.residual is not None and module.pool is not None:
            network = module.pool.residual(module.spec.residual.group)
            arrays |= {
                f"residual/{spec.residual.group}/{key}": value.detach().float().cpu().numpy()
                for key, value in network.named_parameters()
            }
        specs.append(spec)
        arrays |= {f"table/{name}/{key}": array for key, array in module.table.arrays().items()}
    if not specs:
        raise SpecError("the model has no HFH layers to save; see hfh_embed.nn.compress")
    used = []
    for pool_name, pool in pools.values():
        if pool.spec is not None:
            used.append(replace(pool.spec, name=pool_name))
            arrays |= {f"pool/{pool_name}/{key}": array for key, array in pool.arrays().items()}
    return Snapshot(SnapshotSpec(tuple(specs), tuple(used)), arrays, vocabularies=vocabularies, metadata=metadata)


def _layers(model: nn.Module) -> list[tuple[str, Lookup]]:
    """The layers with their paths, tied heads last, since a tied table has the embedding's name."""
    found = [(path, module) for path, module in model.named_modules() if isinstance(module, Lookup)]
    return sorted(found, key=lambda layer: isinstance(layer[1], VocabularyHead) and layer[1].tied)


def _on_pool(spec: TableSpec, pool: str) -> TableSpec:
    """The table with its pool and residual group under the names that they have in the file."""
    if spec.shared is not None:
        spec = spec.replace(shared=replace(spec.shared, pool=pool))
    if spec.residual is not None:
        group = spec.residual.group.removeprefix(f"{pool}.")
        spec = spec.replace(residual=replace(spec.residual, group=f"{pool}.{group}"))
    return spec


def load(path: str | os.PathLike[str]) -> dict[str, HFHEmbedding]:
    """The tables of a snapshot as layers, by name, giving the same rows and ready to be trained further.

    Tables of one pool share it. Few-bit masters start in the middle of their levels.
    """
    with hfh_embed.open(path) as snapshot:
        return layers_of(snapshot)


def layers_of(snapshot: Snapshot, fresh: bool = False) -> dict[str, HFHEmbedding]:
    """The tables of a snapshot as layers; see :func:`load`. ``fresh`` ones have its codes, but values that are drawn anew."""
    spec, arrays = snapshot.spec, dict(snapshot.arrays)
    pools = {pool.name: _loaded_pool(spec, pool.name, arrays, fresh) for pool in spec.pools}
    without = _loaded_pool(spec, None, arrays, fresh) if any(t.residual and not t.shared for t in spec.tables) else None
    layers = {}
    for table in spec.tables:
        pool = pools[table.shared.pool] if table.shared is not None else (without if table.residual else None)
        drawn = fresh and table.coded is None and table.trellis is None
        layers[table.name] = HFHEmbedding._of(
            Rows(table, pool, loaded=None if drawn else spec.data(table.name, arrays))
        )
    return layers


@torch.no_grad()
def _loaded_pool(spec: SnapshotSpec, name: str | None, arrays: Mapping[str, Array], fresh: bool) -> Pool:
    """A pool with the values of a snapshot, or fresh ones, planned for the tables that read it."""
    tables = tuple(t for t in spec.tables if (t.shared.pool if t.shared is not None else None) == name)
    if name is None:
        tables = tuple(t for t in tables if t.residual is not None)
    pool = Pool(SnapshotSpec(tables, tuple(p for p in spec.pools if p.name == name)))
    if fresh:
        return pool
    for group in pool.plan.residuals():
        for key, parameter in pool.residual(group).named_parameters():
            parameter.copy_(torch.tensor(arrays[f"residual/{group}/{key}"]))
    if name is None:
        return pool
    assert pool.spec is not None
    own = {key.removeprefix(f"pool/{name}/"): array for key, array in arrays.items() if key.startswith(f"pool/{name}/")}
    scale = torch.ones(1).numpy()
    values = loaded_values(
        {"pool.values": own["values"][None], "pool.scale": scale}, "pool", pool.spec.bits, pool.spec.slots
    )
    pool.store = values
    pool.store.half_step = values.half_step.reshape(())
    for key in own.keys() - {"values"}:
        getattr(pool, key).copy_(torch.tensor(own[key]))
    return pool
