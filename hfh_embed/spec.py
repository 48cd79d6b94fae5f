"""What a pool and a table are: frozen facts, from which every address and every stored byte follows.

A row is built in this order (``reference.py`` is the definition)::

    z(i)  = 0                                           R latent entries
    z(i)[R - shared.dim :]  += g(values fetched from the pool by U hash functions)
    z(i)[: private.dim]     += the few-bit coefficients that belong to id i alone
    z(i)[chunk]             += codebook[code of id i]   each chunk of the coded part
    z(i)[: trellis.width]   += factor * values that windows of id i's ring of bits name
    z(i)  = exact row of id i                           where it has one
    z(i)  = row of id i in its level @ the level's map  where it has one; or added to z(i)
    e(i)  = z(i) @ map + bias                           only with a map; else R = D
    e(i) += W2 relu(W1 e(i) + b1) + b2                  only with a residual network

Where a table keeps only some of its ids, i is the place of an id among them, and the rows of the others are zeros.

Letters: N ids, D embedding_dim, R latent_dim, S slots, U num_hashes, Z chunk_size.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hfh_embed.coded_parts import CodeChunk, CodedSpec, StepRun, TrellisSpec
from hfh_embed.parts import (
    LINE_BITS,
    MAX_DIM,
    MAX_IDS,
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
    Unknown,
    check,
    check_name,
    check_range,
)

__all__ = [
    "LINE_BITS",
    "CodeChunk",
    "CodedSpec",
    "ExactSpec",
    "KeptSpec",
    "Level",
    "LevelIndex",
    "LevelsSpec",
    "Locality",
    "MapBand",
    "MapSpec",
    "PoolSpec",
    "PrivateRole",
    "PrivateSpec",
    "Reconstruction",
    "ResidualSpec",
    "SharedSpec",
    "StepRun",
    "TableSpec",
    "TrellisSpec",
    "Unknown",
    "check_pair",
]

MAX_ADDRESSES = 2**32  # hashing.below draws from 32 bits


@dataclass(frozen=True)
class TableSpec:
    """A named logical (N, D) matrix: which parts its rows are made of. It owns no floats."""

    name: str
    num_embeddings: int
    embedding_dim: int
    shared: SharedSpec | None = None
    private: PrivateSpec | None = None
    coded: CodedSpec | None = None
    trellis: TrellisSpec | None = None
    exact: ExactSpec | None = None
    levels: LevelsSpec | None = None
    map: MapSpec | None = None
    residual: ResidualSpec | None = None
    kept: KeptSpec | None = None
    latent_dim: int = 0  # 0: the embedding_dim
    padding_id: int | None = None
    unknown: Unknown = Unknown.ERROR

    def __post_init__(self) -> None:
        object.__setattr__(self, "unknown", Unknown(self.unknown))
        check_name("the table's name", self.name)
        check_range("num_embeddings", self.num_embeddings, 1, MAX_IDS)
        check_range("embedding_dim", self.embedding_dim, 1, MAX_DIM)
        if self.latent_dim == 0:
            object.__setattr__(self, "latent_dim", self.embedding_dim)
        check_range("latent_dim", self.latent_dim, 1, MAX_DIM)
        check(
            self.map is not None or self.latent_dim == self.embedding_dim,
            f"latent_dim is {self.latent_dim} and embedding_dim {self.embedding_dim}; different sizes need a map",
        )
        whole = self.levels is not None and self.levels.count == self.num_kept
        check(
            whole or any((self.shared, self.private, self.coded, self.trellis)),
            f"table {self.name!r} has no part; give it a shared, private, coded or trellis one, or levels that have every id",
        )
        if self.padding_id is not None:
            check_range("padding_id", self.padding_id, 0, self.num_embeddings - 1)
        self._check_parts()

    def _check_parts(self) -> None:
        shared, private, coded, latent = self.shared, self.private, self.coded, self.latent_dim
        covered = [self.levels is not None and self.levels.count == self.num_kept] * latent
        if shared is not None:
            check(shared.dim <= latent, f"the shared part has {shared.dim} entries; the latent row has {latent}")
            covered[latent - shared.dim :] = [True] * shared.dim
        if private is not None and private.role is PrivateRole.WEIGH:
            check(
                shared is not None and private.dim == shared.num_hashes,
                "weighing coefficients need a shared part with one hash function for each of them",
            )
        elif private is not None:
            check(
                private.dim <= latent, f"the private part has {private.dim} coefficients; the latent row has {latent}"
            )
            covered[: private.dim] = [True] * private.dim
        for chunk in coded.chunks if coded is not None else ():
            check(
                chunk.start + chunk.size <= latent,
                f"a code chunk ends at entry {chunk.start + chunk.size}; the latent row has {latent}",
            )
            covered[chunk.start : chunk.start + chunk.size] = [True] * chunk.size
        if (trellis := self.trellis) is not None:
            check(trellis.width <= latent, f"the trellis has {trellis.width} entries; the latent row has {latent}")
            check(self.map is not None, "a trellis gives values without a unit; give the table a map")
            covered[: trellis.width] = [True] * trellis.width
        if self.map is not None and self.map.bands:
            rows = sum(band.rows for band in self.map.bands)
            check(rows == latent, f"the map's bands have {rows} rows; the latent row has {latent} entries")
        check(
            all(covered),
            f"entry {covered.index(False) if not all(covered) else 0} of the latent row belongs to no part",
        )
        check(
            self.unknown is not Unknown.RECONSTRUCT or (coded is None and self.trellis is None and shared is not None),
            "only a table with a shared part and no codes can reconstruct unknown ids; use unknown 'zero' or 'error'",
        )
        if self.kept is not None:
            check(
                self.kept.count < self.num_embeddings,
                f"{self.kept.count} ids are kept; the table has {self.num_embeddings}, so leave kept out",
            )
            check(
                self.unknown is not Unknown.RECONSTRUCT,
                "a table that keeps only some ids reconstructs no others; use unknown 'zero' or 'error'",
            )
        if self.exact is not None:
            check(
                self.exact.count <= self.num_kept,
                f"{self.exact.count} exact rows; the table has {self.num_kept} ids",
            )
        if self.levels is not None:
            self._check_levels(self.levels)

    def _check_levels(self, levels: LevelsSpec) -> None:
        check(
            all(part is None for part in (self.exact, self.coded, self.trellis)),
            "levels go with shared and private parts; codes and rows of full width (exact) have no place beside them",
        )
        check(
            levels.count <= self.num_kept,
            f"{levels.count} ids in levels; the table has {self.num_kept}",
        )
        check(
            all(level.dim <= self.latent_dim for level in levels.each),
            f"a level has rows of {max(level.dim for level in levels.each)}; the latent row has {self.latent_dim} entries",
        )

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the uncompressed float32 table."""
        return 4 * self.num_embeddings * self.embedding_dim

    @property
    def num_kept(self) -> int:
        """Ids that have more than a row of zeros: all of them, where the table does not keep only some."""
        return self.num_embeddings if self.kept is None else self.kept.count

    @property
    def inner(self) -> TableSpec:
        """What the table has for its kept ids, by their places; the table itself where it keeps all."""
        if self.kept is None:
            return self
        return self.replace(num_embeddings=self.kept.count, kept=None, padding_id=None, unknown=Unknown.ZERO)

    def among(self, num_embeddings: int) -> TableSpec:
        """The table of so many ids that keeps as many as this one has; the inverse of :attr:`inner`."""
        if num_embeddings == self.num_embeddings:
            return self
        unknown = Unknown.ZERO if self.unknown is Unknown.RECONSTRUCT else self.unknown
        return self.replace(num_embeddings=num_embeddings, kept=KeptSpec(self.num_embeddings), unknown=unknown)

    def replace(self, **changes: object) -> TableSpec:
        """A copy with some fields changed, checked anew."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def check_pair(table: TableSpec, pool: PoolSpec) -> None:
    """Raise SpecError unless the table's shared part can read this pool."""
    shared = table.shared
    check(shared is not None and shared.pool == pool.name, f"table {table.name!r} does not read pool {pool.name!r}")
    assert shared is not None
    line_slots = LINE_BITS // pool.bits
    if pool.reconstruction is not Reconstruction.SUM:
        check(
            shared.num_hashes == pool.num_hashes,
            f"table {table.name!r} has {shared.num_hashes} hash functions; the pool's network takes {pool.num_hashes}",
        )
    match shared.locality:
        case Locality.FREE:
            check(
                pool.slots >= shared.chunk_size,
                f"chunk_size is {shared.chunk_size}; the pool has only {pool.slots} slots",
            )
            check(
                pool.slots - shared.chunk_size < MAX_ADDRESSES,
                f"{pool.slots} slots are too many for locality 'free' (at most 2**32); use 'line' or 'words'",
            )
        case Locality.ALIGNED:
            check(
                1 <= pool.slots // shared.chunk_size <= MAX_ADDRESSES,
                f"{pool.slots} slots in chunks of {shared.chunk_size}; locality 'aligned' takes 1 to 2**32 chunks",
            )
        case Locality.LINE:
            check(
                shared.chunk_size <= line_slots,
                f"chunk_size is {shared.chunk_size}; a line of {pool.bits}-bit values has {line_slots} slots",
            )
            check(pool.lines <= MAX_ADDRESSES, f"{pool.lines} lines are too many (at most 2**32)")
        case Locality.WORDS:
            width = shared.num_hashes * shared.chunk_size
            check(
                width <= line_slots,
                f"{shared.num_hashes} words of {shared.chunk_size} slots do not fit a line of {line_slots} slots; lower num_hashes or chunk_size",
            )
            check(
                width * pool.bits >= 8,
                f"{shared.num_hashes} words of {shared.chunk_size} slots of {pool.bits} bits are less than a byte; raise num_hashes or chunk_size",
            )
            check(pool.slots // width <= MAX_ADDRESSES, f"{pool.slots // width} lines are too many (at most 2**32)")
