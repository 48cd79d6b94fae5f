"""Random specs, sizes and places in memory through the compiled kernels, against the reference: ``python -m tests.native_fuzz``.

``make sanitize`` runs it where any access outside an array ends the process. Each pool and value array ends where its
allocation ends.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed import reference
from hfh_embed.errors import SpecError
from hfh_embed.hashing import table_key
from hfh_embed.kernels import _native
from hfh_embed.kernels.native_backend import SIMD, addresses, shared_facts
from hfh_embed.layout import SnapshotSpec
from hfh_embed.packing import unpack
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import (
    ExactSpec,
    Level,
    LevelIndex,
    LevelsSpec,
    Locality,
    MapSpec,
    PoolSpec,
    PrivateRole,
    PrivateSpec,
    Reconstruction,
    ResidualSpec,
    SharedSpec,
    TableSpec,
    Unknown,
)
from tests.builders import random_arrays

LINE = 512
BITS = (1, 2, 4, 8, 16, 32)


def random_spec(generator: np.random.Generator) -> SnapshotSpec:
    """Any spec that the compiled kernels serve; SpecError where what was drawn does not fit together."""

    def number(low: int, high: int) -> int:
        return int(generator.integers(low, high + 1))

    def maybe(chance: float) -> bool:
        return bool(generator.random() < chance)

    bits, hashes = int(generator.choice(BITS)), int(generator.choice((1, 2, 3, 4, 8, 16, 64)))
    locality = Locality(generator.choice([one.value for one in Locality]))
    chunk = int(generator.choice((1, 2, 4, 8, 16, 32, 64, 128))) if maybe(0.7) else number(1, 700)
    if maybe(0.3):  # the line form
        bits, locality, hashes = 1, Locality.WORDS, int(generator.choice((4, 8, 16)))
        chunk = 512 // hashes
    kind = Reconstruction(generator.choice([one.value for one in Reconstruction], p=[0.7, 0.15, 0.15]))
    hidden = number(1, 20) if kind is Reconstruction.MLP else 0
    slots = number(1, 40) * 512 // bits
    inputs = 0 if kind is Reconstruction.SUM else hashes
    pool = PoolSpec("pool", slots, bits, number(0, 99), kind, inputs, hidden)
    latent = number(1, 150)
    has_map = maybe(0.3)
    dim = number(1, 150) if has_map else latent
    count = number(1, 200)
    shared = private = exact = None
    if maybe(0.8):
        lines = number(1, 5) if locality is Locality.LINE else 1
        own = latent if maybe(0.6) else number(1, latent)
        key = table_key(pool.seed, "users")
        shared = SharedSpec("pool", own, key, hashes, chunk, locality, lines, maybe(0.7))
    if shared is None or shared.dim < latent or maybe(0.3):
        private_bits = int(generator.choice(BITS))
        weighs = shared is not None and shared.dim == latent and maybe(0.4)
        private = PrivateSpec(
            hashes if weighs else latent,
            private_bits,
            PrivateRole.WEIGH if weighs else PrivateRole.ADD,
            private_bits <= 8 and maybe(0.5),
        )
    if maybe(0.3):
        exact = ExactSpec(number(1, count), int(generator.choice(BITS)))
    levels = random_levels(generator, count, latent) if exact is None and maybe(0.4) else None
    unknown = Unknown(generator.choice([one.value for one in Unknown])) if shared is not None else Unknown.ERROR
    table = TableSpec(
        "users",
        count,
        dim,
        shared=shared,
        private=private,
        exact=exact,
        levels=levels,
        map=MapSpec(int(generator.choice(BITS)), maybe(0.5)) if has_map else None,
        residual=ResidualSpec("group", number(1, 20)) if maybe(0.2) else None,
        latent_dim=latent,
        padding_id=number(0, count - 1) if maybe(0.3) else None,
        unknown=unknown,
    )
    if maybe(0.2):
        table = table.replace(padding_id=None).among(count + number(1, 1500))
        table = table.replace(padding_id=number(0, table.num_embeddings - 1) if maybe(0.5) else None)
    return SnapshotSpec((table,), (pool,) if shared is not None else ())


def random_levels(generator: np.random.Generator, count: int, latent: int) -> LevelsSpec:
    """A few levels of any widths, of some ids or of all."""
    ends = np.unique(np.append(generator.integers(1, count + 1, int(generator.integers(0, 6))), count))
    counts = np.diff(ends, prepend=0)[: None if generator.random() < 0.3 else max(1, len(ends) - 1)]
    each = tuple(
        Level(
            int(n), int(generator.choice(BITS)), int(generator.integers(1, latent + 1)), int(generator.choice(BITS[2:]))
        )
        for n in counts
    )
    return LevelsSpec(each, generator.choice([one.value for one in LevelIndex]), bool(generator.random() < 0.3))


def at_the_end(array: np.ndarray[Any, Any], offset: int) -> np.ndarray[Any, Any]:
    """A copy that ends where its allocation ends, ``offset`` items from where that begins."""
    moved = np.empty(array.size + offset, array.dtype)[offset:].reshape(array.shape)
    moved[...] = array
    return moved


def run(seed: int) -> bool:
    """One random table; whether its spec held together."""
    generator = np.random.default_rng(seed)
    try:
        spec = random_spec(generator)
    except SpecError:
        return False
    offset = int(generator.integers(0, 9))
    arrays = {name: at_the_end(array, offset) for name, array in random_arrays(spec, seed).items()}
    table = Snapshot(spec, arrays, kernels="native")["users"]
    ids = generator.integers(0, table.num_embeddings, int(generator.integers(0, 200)))
    if table.unknown is not Unknown.ERROR and len(ids):
        ids[generator.integers(0, len(ids), 3)] = [table.num_embeddings, 2**40, 2**63 - 1]
    ids = at_the_end(ids, offset)
    truth = reference.rows(table.data, ids)
    magnitude = float(np.abs(truth).max(initial=0)) + _levels(table.data)
    budget = 2e-5 * (magnitude + 1e-3)
    threads = int(generator.integers(1, 4))
    out = at_the_end(np.zeros(truth.shape, np.float32), offset)
    rows = table.lookup(ids, out=out, num_threads=threads)
    assert np.abs(rows - truth).max(initial=0) <= budget, (seed, spec, np.abs(rows - truth).max())
    with np.errstate(over="ignore"):
        narrow = rows.astype(np.float16)
    assert table.lookup(ids, dtype=np.float16).tobytes() == narrow.tobytes(), (seed, spec)
    bounds = np.sort(np.concatenate(([0, len(ids)], generator.integers(0, len(ids) + 1, 5))))
    for mode in ("sum", "mean", "max"):
        weights = generator.normal(size=len(ids)) if mode == "sum" and seed % 2 else None
        bags = reference.bag(table.data, ids, bounds, mode, weights, include_last_offset=True)
        mine = table.bag(ids, bounds, mode=mode, per_sample_weights=weights, include_last_offset=True)
        assert np.abs(mine - bags).max(initial=0) <= 4 * (len(ids) + 1) * budget, (seed, spec, mode)
    return True


def run_training(seed: int) -> bool:
    """Random gradients into one pool and one step of each optimizer, against numpy."""
    generator = np.random.default_rng(seed)
    try:
        spec = random_spec(generator)
        table = spec.tables[0]
        if table.shared is None:
            return False
    except SpecError:
        return False
    shared, pool = table.shared, spec.pools[0]
    threads, offset = int(generator.integers(1, 4)), int(generator.integers(0, 9))
    gradients, truth = _native.Gradients(pool.slots), np.zeros(pool.slots)
    for _ in range(int(generator.integers(1, 4))):
        ids = at_the_end(generator.integers(0, 2**40, int(generator.integers(0, 1500))), offset)
        grads = at_the_end(generator.normal(size=(len(ids), shared.dim)).astype(np.float32), offset)
        gradients.add(*shared_facts(shared, pool), ids, grads, 0.5)
        where = addresses(shared, pool, ids)
        wide = np.zeros((len(ids), shared.num_chunks * shared.chunk_size))
        wide[:, : shared.dim] = 0.5 * grads
        wide = wide.reshape(len(ids), shared.num_chunks, 1, shared.chunk_size)
        signed = np.where(where.negative[..., None], -wide, wide)
        np.add.at(
            truth, where.slots(shared.chunk_size), np.broadcast_to(signed, (*where.start.shape, shared.chunk_size))
        )
    budget = 1e-5 * (np.abs(truth).max() + 10)
    values = at_the_end(generator.normal(size=pool.slots).astype(np.float32), offset)
    found = at_the_end(values, offset)
    gradients.into(found, threads)
    assert np.abs(found - values - truth).max() <= budget, (seed, spec)
    if pool.bits <= 8:
        stored = np.empty(pool.slots * pool.bits // 8, np.uint8)
        _native.pack(values, pool.bits, 0.25, stored, threads)
        half = 2 ** (pool.bits - 1)
        codes = np.clip(np.floor(values / np.float32(0.5)), -half, half - 1).astype(np.int64) + half
        assert (unpack(stored, pool.slots, pool.bits) == codes).all(), (seed, spec)
    line_form = (pool.bits, shared.locality, shared.num_hashes * shared.chunk_size) == (1, Locality.WORDS, LINE)
    if not line_form or shared.num_hashes not in (4, 8, 16):
        return True
    stepped = at_the_end(values, offset)
    grown = gradients.sgd(stepped, stored, 0.1, 0, threads)
    assert np.abs(stepped - (values - 0.1 * truth)).max() <= budget, (seed, spec)
    narrow = at_the_end((values.view(np.uint32) >> 16).astype(np.uint16), offset)
    before = _widened(narrow)
    again, marks = at_the_end(narrow, offset), stored.copy()
    gradients.sgd(narrow, marks, 0.1, seed, threads)
    gradients.sgd(again, stored.copy(), 0.1, seed, 1)
    assert narrow.tobytes() == again.tobytes(), (seed, spec)
    wanted = before - 0.1 * truth
    assert (np.abs(_widened(narrow) - wanted) <= np.abs(wanted) / 128 + budget).all(), (seed, spec)
    first, second = (at_the_end(np.zeros_like(values), offset) for _ in range(2))
    before = float((stepped.astype(np.float64) ** 2).sum())
    assert abs(before - float((values.astype(np.float64) ** 2).sum()) - grown) <= 1e-4 * (1 + before), (seed, spec)
    gradients.adam(stepped, first, second, stored, 0.01, 0.9, 0.99, 1e-3, 0, threads)
    assert np.abs(first - 0.1 * truth).max() <= budget and (second >= 0).all(), (seed, spec)
    touched = np.abs(truth).reshape(-1, LINE).any(axis=1).repeat(LINE)
    assert ((unpack(stored, pool.slots, 1) == 1) == (stepped >= 0))[touched].all(), (seed, spec)
    assert ((unpack(marks, pool.slots, 1) == 1) == (_widened(narrow) >= 0))[touched].all(), (seed, spec)
    return True


def _widened(half: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 as float32."""
    return (half.astype(np.uint32) << 16).view(np.float32)


def _levels(data: Any) -> float:
    """How large the terms of the shared part can be, which cancel in its sum."""
    if data.table.shared is None:
        return 0.0
    private = data.arrays.get("private.values")
    weight = 40.0 if private is not None and data.table.private.role is PrivateRole.WEIGH else 1.0
    size = data.table.shared.num_hashes * float(np.abs(data.arrays["shared.scale"]).max()) * weight
    largest = float(2**data.pool.bits) if data.pool.bits <= 8 else 3.0
    return size * (
        largest**2 * data.table.shared.num_hashes if data.pool.reconstruction is not Reconstruction.SUM else largest
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0, help="the first; a failure names its own")
    options = parser.parse_args()
    end, seed, tables, trained = time.monotonic() + options.seconds, options.seed, 0, 0
    while time.monotonic() < end:
        tables += run(seed)
        trained += run_training(seed)
        seed += 1
    print(f"{SIMD}: {tables} random tables equal the reference, {trained} random steps equal numpy's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
