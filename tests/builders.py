"""Specs of every kind, and arrays of random bytes for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hfh_embed.hashing import table_key
from hfh_embed.layout import SnapshotSpec
from hfh_embed.level_index import index_arrays
from hfh_embed.packing import pack
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import (
    CodeChunk,
    CodedSpec,
    ExactSpec,
    KeptSpec,
    Level,
    LevelIndex,
    LevelsSpec,
    Locality,
    MapBand,
    MapSpec,
    PoolSpec,
    PrivateRole,
    PrivateSpec,
    Reconstruction,
    ResidualSpec,
    SharedSpec,
    StepRun,
    TableSpec,
    TrellisSpec,
    Unknown,
)

N = 1_003


def random_arrays(spec: SnapshotSpec, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, array in spec.arrays().items():
        if name.endswith("kept.bits"):
            table = spec.table(name.split("/")[1])
            bits = np.zeros(table.num_embeddings, dtype=np.uint8)
            bits[generator.choice(table.num_embeddings, table.num_kept, replace=False)] = 1
            arrays[name] = pack(bits, 1)
        elif name.endswith("exact.ids"):
            table = spec.table(name.split("/")[1]).inner
            ids = np.sort(generator.choice(table.num_embeddings, array.shape[0], replace=False))
            arrays[name] = ids.astype(array.dtype)
        elif name.split("/")[-1] in ("levels.codes", "levels.ids"):
            table = spec.table(name.split("/")[1]).inner
            assert table.levels is not None
            drawn = generator.permutation(table.num_embeddings)[: table.levels.count]
            ends = np.cumsum([level.count for level in table.levels.each])[:-1]
            arrays[name] = index_arrays(table, [np.sort(ids) for ids in np.split(drawn, ends)])[name.split("/")[-1]]
        elif array.dtype == np.uint8:
            arrays[name] = generator.integers(0, 256, array.shape, dtype=np.uint8)
        elif array.dtype.kind == "i":
            arrays[name] = generator.integers(-128, 128, array.shape).astype(array.dtype)
        else:
            arrays[name] = (generator.normal(size=array.shape) * 0.3).astype(array.dtype)
    return arrays


def snapshot_of(table: TableSpec, pool: PoolSpec | None = None, **options: Any) -> Snapshot:
    spec = SnapshotSpec((table,), (pool,) if pool is not None else ())
    return Snapshot(spec, random_arrays(spec), **options)


def shared_table(pool: PoolSpec, **options: Any) -> TableSpec:
    """A table with a shared part; ``options`` are those of SharedSpec and TableSpec."""
    own = {key: options.pop(key) for key in list(options) if key in SharedSpec.__dataclass_fields__}
    dim = own.pop("dim", options.get("latent_dim") or options.get("embedding_dim", 40))
    shared = SharedSpec(pool.name, dim, table_key(pool.seed, "users"), **own)
    return TableSpec(**({"name": "users", "num_embeddings": N, "embedding_dim": 40, "shared": shared} | options))


def _pool(slots_in_lines: int = 37, **options: Any) -> PoolSpec:
    bits = options.get("bits", 1)
    return PoolSpec("pool", slots_in_lines * 512 // bits, **options)


def _cases() -> dict[str, tuple[TableSpec, PoolSpec | None]]:
    cases: dict[str, tuple[TableSpec, PoolSpec | None]] = {}
    for bits in (1, 2, 4, 8, 16, 32):
        pool = _pool(bits=bits)
        size = min(64, 512 // bits // 4)
        for locality, options in {
            Locality.FREE: {"num_hashes": 3, "chunk_size": 7},
            Locality.ALIGNED: {"num_hashes": 2, "chunk_size": 8, "signs": False},
            Locality.LINE: {"num_hashes": 3, "chunk_size": 5, "lines": 2},
            Locality.WORDS: {"num_hashes": 4, "chunk_size": size},
        }.items():
            cases[f"{locality.value}-{bits}"] = (shared_table(pool, locality=locality, **options), pool)
    pool = _pool()
    line = shared_table(pool)
    cases["line-dim-1"] = (shared_table(pool, embedding_dim=1), pool)
    cases["line-dim-64"] = (shared_table(pool, embedding_dim=64), pool)
    cases["line-dim-130"] = (shared_table(pool, embedding_dim=130, num_hashes=4, chunk_size=128), pool)
    sixteen = {"num_hashes": 16, "chunk_size": 32}
    cases["words-16"] = (shared_table(pool, **sixteen), pool)
    cases["line-16-words"] = (shared_table(pool, embedding_dim=32, **sixteen), pool)
    short = shared_table(pool, embedding_dim=27, padding_id=7, unknown=Unknown.ZERO, **sixteen)
    cases["line-16-words-dim-27"] = (short, pool)
    cases["line-16-words-unsigned"] = (shared_table(pool, embedding_dim=16, signs=False, **sixteen), pool)
    own = {"private": PrivateSpec(24, 4), "map": MapSpec(32)}
    cases["map-16-words"] = (shared_table(pool, latent_dim=24, **own, **sixteen), pool)
    cases["private"] = (line.replace(private=PrivateSpec(40, 2)), pool)
    cases["private-row-scale"] = (line.replace(private=PrivateSpec(9, 4, row_scale=True)), pool)
    cases["private-alone"] = (line.replace(shared=None, private=PrivateSpec(40, 8)), None)
    cases["private-floats"] = (line.replace(shared=None, private=PrivateSpec(40, 32)), None)
    cases["exact"] = (line.replace(exact=ExactSpec(17, 4)), pool)
    cases["exact-floats"] = (line.replace(exact=ExactSpec(1, 16)), pool)
    levels = (Level(3, 8, 40), Level(20, 4, 17), Level(300, 2, 5, 4), Level(77, 16, 1, 32))
    for index in LevelIndex:
        cases[f"levels-{index.value}"] = (line.replace(levels=LevelsSpec(levels, index)), pool)
    added = LevelsSpec((Level(600, 1, 9, 16),), LevelIndex.CODES, adds=True)
    cases["levels-added"] = (line.replace(levels=added, private=PrivateSpec(40, 1), unknown=Unknown.RECONSTRUCT), pool)
    every = LevelsSpec((Level(13, 32, 40), Level(90, 4, 20), Level(200, 4, 9), Level(N - 303, 4, 3)), LevelIndex.CODES)
    cases["levels-alone"] = (line.replace(shared=None, levels=every, unknown=Unknown.ZERO), None)
    latent = shared_table(pool, latent_dim=24, embedding_dim=40, map=MapSpec(32))
    cases["map"] = (latent, pool)
    few = LevelsSpec((Level(2, 4, 24), Level(100, 4, 6)), LevelIndex.IDS)
    cases["levels-map"] = (latent.replace(levels=few, residual=ResidualSpec("group", 5)), pool)
    cases["map-4-bias"] = (latent.replace(map=MapSpec(4, bias=True), private=PrivateSpec(24, 1)), pool)
    cases["beside"] = (latent.replace(shared=replace(latent.shared, dim=16), private=PrivateSpec(8, 2)), pool)  # type: ignore[type-var]
    cases["residual"] = (line.replace(residual=ResidualSpec("group", 5)), pool)
    chunks = (CodeChunk(0, 3, 8), CodeChunk(3, 30, 11), CodeChunk(33, 7, 1), CodeChunk(2, 20, 3))
    for bits in (4, 8, 16, 32):
        coded = CodedSpec(chunks, bits, row_scale=bits == 8)
        cases[f"coded-{bits}"] = (line.replace(shared=None, coded=coded, map=MapSpec(8, bias=True)), None)
    runs = (StepRun(5, 1, 4), StepRun(7, 1, 2), StepRun(4, 2, 3), StepRun(3, 3, 1))
    trellis = TrellisSpec(runs, 9, norm_bits=5, constant=True)
    alone = {"shared": None, "latent_dim": trellis.width, "map": MapSpec(8, bias=True)}
    cases["trellis"] = (line.replace(**alone, trellis=trellis), None)
    bands = MapSpec(8, bands=(MapBand(6, 8), MapBand(20, 3), MapBand(trellis.width - 26, 5)))
    cases["trellis-bands"] = (line.replace(**alone | {"map": bands}, trellis=trellis, exact=ExactSpec(9, 8)), None)
    few_steps = TrellisSpec((StepRun(3, 1, 3), StepRun(31, 1, 1)), 12, value_bits=16)
    coded = CodedSpec((CodeChunk(0, 40, 5),), 8)
    cases["trellis-coded"] = (line.replace(shared=None, trellis=few_steps, coded=coded, map=MapSpec(16)), None)
    stages = CodedSpec(tuple(CodeChunk(3 * turn, 40 - 3 * turn, 8 - turn % 4) for turn in range(11)), 8)
    mapped = {"shared": None, "embedding_dim": 64, "map": MapSpec(8, bias=True), "unknown": Unknown.ZERO}
    cases["trellis-stages"] = (line.replace(**mapped, trellis=TrellisSpec((StepRun(20, 2, 1),), 8), coded=stages), None)
    full = TrellisSpec((StepRun(130, 1, 2),), 16)
    cases["trellis-16"] = (line.replace(**alone | {"latent_dim": 130}, trellis=full), None)
    tiny = TrellisSpec((StepRun(1, 8, 5),), 5, norm_bits=1)
    cases["trellis-tiny"] = (line.replace(**alone | {"latent_dim": 8}, trellis=tiny), None)
    for reconstruction, hidden in ((Reconstruction.BILINEAR, 0), (Reconstruction.MLP, 6)):
        own = _pool(bits=8, reconstruction=reconstruction, num_hashes=3, hidden=hidden)
        spec = shared_table(own, num_hashes=3, chunk_size=4, locality=Locality.FREE)
        cases[reconstruction.value] = (spec, own)
    own = _pool(bits=32)
    weigh = shared_table(own, num_hashes=2, chunk_size=40, locality=Locality.ALIGNED, signs=False)
    cases["weigh"] = (weigh.replace(private=PrivateSpec(2, 32, PrivateRole.WEIGH)), own)
    some = {"kept": KeptSpec(300), "unknown": Unknown.ZERO}
    cases["kept"] = (line.replace(**some, padding_id=7), pool)
    cases["kept-exact-map"] = (latent.replace(kept=KeptSpec(N - 1), exact=ExactSpec(50, 4)), pool)
    alone_levels = LevelsSpec((Level(13, 32, 40), Level(87, 4, 20), Level(200, 4, 9)), LevelIndex.CODES)
    cases["kept-levels"] = (line.replace(**some, shared=None, levels=alone_levels), None)
    cases["kept-trellis"] = (line.replace(**alone | some, trellis=trellis, padding_id=7), None)
    cases["padding-zero"] = (line.replace(padding_id=7, unknown=Unknown.ZERO), pool)
    cases["reconstruct"] = (line.replace(unknown=Unknown.RECONSTRUCT, private=PrivateSpec(40, 1)), pool)
    return cases


CASES = _cases()
BIT_EXACT = {
    name
    for name in CASES
    if name.startswith(("free-", "aligned-", "line-", "words-", "private", "exact", "padding", "reconstruct"))
}
BIT_EXACT -= {name for name in BIT_EXACT if name.endswith(("-16", "-32", "floats")) and name != "words-16"}
