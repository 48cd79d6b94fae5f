"""What a pool and a table are: frozen facts, from which every address and every stored byte follows.

A row is built in this order (``reference.py`` is the definition)::

    z(i)  = 0                                           R latent entries
    z(i)[R - shared.dim :]  += g(values fetched from the pool by U hash functions)
    z(i)[: private.dim]     += the few-bit coefficients that belong to id i alone
    z(i)[chunk]             += codebook[code of id i]   each chunk of the coded part
    z(i)  = exact row of id i                           where it has one
    e(i)  = z(i) @ map + bias                           only with a map; else R = D
    e(i) += W2 relu(W1 e(i) + b1) + b2                  only with a residual network

Letters: N ids, D embedding_dim, R latent_dim, S slots, U num_hashes, Z chunk_size.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from dataclasses import dataclass

from hfh_embed.errors import SpecError

__all__ = [
    "LINE_BITS",
    "CodeChunk",
    "CodedSpec",
    "ExactSpec",
    "Locality",
    "MapSpec",
    "PoolSpec",
    "PrivateRole",
    "PrivateSpec",
    "Reconstruction",
    "ResidualSpec",
    "SharedSpec",
    "TableSpec",
    "Unknown",
    "check_pair",
]

LINE_BITS = 512
"""One cache line, the unit of a pool's size and of line-local addressing."""
VALUE_BITS = (1, 2, 4, 8, 16, 32)
MAX_ADDRESSES = 2**32  # hashing.below draws from 32 bits
MAX_DIM = 65_536
MAX_HASHES = 64
MAX_HIDDEN = 4_096
MAX_CHUNKS = 65_536
MAX_IDS = 2**63 - 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class Locality(enum.StrEnum):
    """How far apart the fetches of one row may lie."""

    FREE = "free"  # anywhere in the pool (HashedNets, ROBE)
    ALIGNED = "aligned"  # anywhere, at multiples of Z (hashing trick, Unified Embedding)
    LINE = "line"  # anywhere inside the row's one or few 64-byte lines
    WORDS = "words"  # word u of one line a chunk, rotated and negated


class Reconstruction(enum.StrEnum):
    """The function g from U fetched values to an entry, shared by a pool."""

    SUM = "sum"
    BILINEAR = "bilinear"  # a . v + v' M v
    MLP = "mlp"  # the paper's network: one tanh layer, entry by entry


class PrivateRole(enum.StrEnum):
    """What an id's own coefficients do."""

    ADD = "add"  # they are added to the first entries of z
    WEIGH = "weigh"  # coefficient u multiplies what hash function u fetched (Hash Embeddings)


class Unknown(enum.StrEnum):
    """What an id outside [0, N) gets when served."""

    RECONSTRUCT = "reconstruct"
    ZERO = "zero"
    ERROR = "error"


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


def _check_range(what: str, value: int, low: int, high: int) -> None:
    _check(
        isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
        f"{what} is {value!r}; give an integer from {low} to {high}",
    )


def _check_bits(what: str, bits: int, allowed: tuple[int, ...] = VALUE_BITS) -> None:
    _check(bits in allowed, f"{what} is {bits!r}; allowed are {', '.join(map(str, allowed))}")


def check_name(what: str, name: str) -> None:
    """Names appear in URLs and in the file's tensor names, so they are plain."""
    _check(
        isinstance(name, str) and _NAME.fullmatch(name) is not None,
        f"{what} {name!r} is not usable; use 1 to 128 letters, digits, '_', '.' and '-', starting with a letter, a digit or '_'",
    )


@dataclass(frozen=True)
class PoolSpec:
    """The one shared store of S values, and the reconstruction network that belongs to it.

    ``num_hashes`` and ``hidden`` size that network and stay 0 where it has none (sum; bilinear has no hidden layer).
    """

    name: str
    slots: int
    bits: int = 1
    seed: int = 0
    reconstruction: Reconstruction = Reconstruction.SUM
    num_hashes: int = 0
    hidden: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "reconstruction", Reconstruction(self.reconstruction))
        check_name("the pool's name", self.name)
        _check_bits("the pool's bits", self.bits)
        _check_range("slots", self.slots, 1, 2**48)
        _check(
            self.slots * self.bits % LINE_BITS == 0,
            f"{self.slots} slots of {self.bits} bits are not whole 64-byte lines; use a multiple of {LINE_BITS // self.bits} slots",
        )
        _check_range("the pool's seed", self.seed, 0, 2**64 - 1)
        match self.reconstruction:
            case Reconstruction.SUM:
                _check(
                    self.num_hashes == 0 and self.hidden == 0,
                    "a sum has no network; leave the pool's num_hashes and hidden at 0",
                )
            case Reconstruction.BILINEAR:
                _check_range("the pool's num_hashes", self.num_hashes, 1, MAX_HASHES)
                _check(self.hidden == 0, "a bilinear reconstruction has no hidden layer; leave hidden at 0")
            case Reconstruction.MLP:
                _check_range("the pool's num_hashes", self.num_hashes, 1, MAX_HASHES)
                _check_range("hidden", self.hidden, 1, MAX_HIDDEN)

    @property
    def lines(self) -> int:
        """64-byte lines in the pool."""
        return self.slots * self.bits // LINE_BITS


@dataclass(frozen=True)
class SharedSpec:
    """The part of a table's rows that comes out of the pool: the last ``dim`` latent entries.

    ``key`` stands for (seed, table) in every hash, see :func:`hfh_embed.hashing.table_key`. ``lines`` is how many lines
    a row may touch under ``Locality.LINE``; the other localities leave it at 1.
    """

    pool: str
    dim: int
    key: int
    num_hashes: int = 8
    chunk_size: int = 64
    locality: Locality = Locality.WORDS
    lines: int = 1
    signs: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "locality", Locality(self.locality))
        check_name("the pool's name", self.pool)
        _check_range("the shared part's dim", self.dim, 1, MAX_DIM)
        _check_range("key", self.key, 0, 2**64 - 1)
        _check_range("num_hashes", self.num_hashes, 1, MAX_HASHES)
        _check_range("chunk_size", self.chunk_size, 1, MAX_DIM)
        _check(isinstance(self.signs, bool), f"signs is {self.signs!r}; give true or false")
        if self.locality is Locality.WORDS:
            size = self.chunk_size
            _check(
                size <= 128 and size & (size - 1) == 0,
                f"chunk_size is {size}; rotated words need a power of two up to 128",
            )
            _check(
                self.num_hashes & (self.num_hashes - 1) == 0,
                f"num_hashes is {self.num_hashes}; a line is divided into words by a power of two",
            )
        if self.locality is Locality.LINE:
            _check_range("lines", self.lines, 1, MAX_HASHES)
        else:
            _check(self.lines == 1, f"lines is {self.lines}; only locality 'line' takes more than 1")

    @property
    def num_chunks(self) -> int:
        """C, chunks that cover the part; the last may be read only in its beginning."""
        return -(-self.dim // self.chunk_size)


@dataclass(frozen=True)
class PrivateSpec:
    """``dim`` coefficients of ``bits`` bits for every id. Few-bit ones have one scale a table, or one a row (float16)."""

    dim: int
    bits: int
    role: PrivateRole = PrivateRole.ADD
    row_scale: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "role", PrivateRole(self.role))
        _check_range("the private part's dim", self.dim, 1, MAX_DIM)
        _check_bits("the private part's bits", self.bits)
        _check(
            not (self.row_scale and self.bits > 8),
            "16- and 32-bit coefficients need no row scale; set row_scale to false",
        )


@dataclass(frozen=True)
class CodeChunk:
    """One codebook: latent entries ``start : start + size`` of every id, by a code of ``bits`` bits. Chunks may overlap (residual codes add up)."""

    start: int
    size: int
    bits: int

    def __post_init__(self) -> None:
        _check_range("a code chunk's start", self.start, 0, MAX_DIM)
        _check_range("a code chunk's size", self.size, 1, MAX_DIM)
        _check_range("a code's bits", self.bits, 1, 16)


@dataclass(frozen=True)
class CodedSpec:
    """Rows of an already trained table: stored addresses (codes) into codebooks of ``codebook_bits``-bit values.

    With ``row_scale`` the coded entries of each id are multiplied by a float16 of its own (rows of very different norms).
    """

    chunks: tuple[CodeChunk, ...]
    codebook_bits: int = 16
    row_scale: bool = False

    def __post_init__(self) -> None:
        _check_bits("codebook_bits", self.codebook_bits, (4, 8, 16, 32))
        _check(0 < len(self.chunks) <= MAX_CHUNKS, f"{len(self.chunks)} code chunks; give 1 to {MAX_CHUNKS}")

    @property
    def code_bits(self) -> int:
        """Bits of all the codes of one id."""
        return sum(chunk.bits for chunk in self.chunks)

    @property
    def codebook_values(self) -> int:
        """Values in all codebooks together."""
        return sum(chunk.size << chunk.bits for chunk in self.chunks)


@dataclass(frozen=True)
class ExactSpec:
    """``count`` ids whose z is stored outright in ``bits`` bits an entry; few-bit ones have a float16 scale a row."""

    count: int
    bits: int

    def __post_init__(self) -> None:
        _check_range("the number of exact rows", self.count, 1, MAX_IDS)
        _check_bits("the exact rows' bits", self.bits)


@dataclass(frozen=True)
class MapSpec:
    """A linear map from R latent entries to D, in ``bits``-bit values (few-bit ones with a float32 scale a latent entry)."""

    bits: int = 32
    bias: bool = False

    def __post_init__(self) -> None:
        _check_bits("the map's bits", self.bits, (4, 8, 16, 32))


@dataclass(frozen=True)
class ResidualSpec:
    """A network with one hidden relu layer that corrects the finished row. Tables that name the same ``group`` share it."""

    group: str
    hidden: int

    def __post_init__(self) -> None:
        check_name("the residual's group", self.group)
        _check_range("the residual's hidden", self.hidden, 1, MAX_HIDDEN)


@dataclass(frozen=True)
class TableSpec:
    """A named logical (N, D) matrix: which parts its rows are made of. It owns no floats."""

    name: str
    num_embeddings: int
    embedding_dim: int
    shared: SharedSpec | None = None
    private: PrivateSpec | None = None
    coded: CodedSpec | None = None
    exact: ExactSpec | None = None
    map: MapSpec | None = None
    residual: ResidualSpec | None = None
    latent_dim: int = 0  # 0: the embedding_dim
    padding_id: int | None = None
    unknown: Unknown = Unknown.ERROR

    def __post_init__(self) -> None:
        object.__setattr__(self, "unknown", Unknown(self.unknown))
        check_name("the table's name", self.name)
        _check_range("num_embeddings", self.num_embeddings, 1, MAX_IDS)
        _check_range("embedding_dim", self.embedding_dim, 1, MAX_DIM)
        if self.latent_dim == 0:
            object.__setattr__(self, "latent_dim", self.embedding_dim)
        _check_range("latent_dim", self.latent_dim, 1, MAX_DIM)
        _check(
            self.map is not None or self.latent_dim == self.embedding_dim,
            f"latent_dim is {self.latent_dim} and embedding_dim {self.embedding_dim}; different sizes need a map",
        )
        _check(
            any((self.shared, self.private, self.coded)),
            f"table {self.name!r} has no part; give it a shared, private or coded one",
        )
        if self.padding_id is not None:
            _check_range("padding_id", self.padding_id, 0, self.num_embeddings - 1)
        self._check_parts()

    def _check_parts(self) -> None:
        shared, private, coded, latent = self.shared, self.private, self.coded, self.latent_dim
        covered = [False] * latent
        if shared is not None:
            _check(shared.dim <= latent, f"the shared part has {shared.dim} entries; the latent row has {latent}")
            covered[latent - shared.dim :] = [True] * shared.dim
        if private is not None and private.role is PrivateRole.WEIGH:
            _check(
                shared is not None and private.dim == shared.num_hashes,
                "weighing coefficients need a shared part with one hash function for each of them",
            )
        elif private is not None:
            _check(
                private.dim <= latent, f"the private part has {private.dim} coefficients; the latent row has {latent}"
            )
            covered[: private.dim] = [True] * private.dim
        for chunk in coded.chunks if coded is not None else ():
            _check(
                chunk.start + chunk.size <= latent,
                f"a code chunk ends at entry {chunk.start + chunk.size}; the latent row has {latent}",
            )
            covered[chunk.start : chunk.start + chunk.size] = [True] * chunk.size
        _check(
            all(covered),
            f"entry {covered.index(False) if not all(covered) else 0} of the latent row belongs to no part",
        )
        _check(
            self.unknown is not Unknown.RECONSTRUCT or (coded is None and shared is not None),
            "only a table with a shared part and no codes can reconstruct unknown ids; use unknown 'zero' or 'error'",
        )
        if self.exact is not None:
            _check(
                self.exact.count <= self.num_embeddings,
                f"{self.exact.count} exact rows; the table has {self.num_embeddings} ids",
            )

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the uncompressed float32 table."""
        return 4 * self.num_embeddings * self.embedding_dim

    def replace(self, **changes: object) -> TableSpec:
        """A copy with some fields changed, checked anew."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def check_pair(table: TableSpec, pool: PoolSpec) -> None:
    """Raise SpecError unless the table's shared part can read this pool."""
    shared = table.shared
    _check(shared is not None and shared.pool == pool.name, f"table {table.name!r} does not read pool {pool.name!r}")
    assert shared is not None
    line_slots = LINE_BITS // pool.bits
    if pool.reconstruction is not Reconstruction.SUM:
        _check(
            shared.num_hashes == pool.num_hashes,
            f"table {table.name!r} has {shared.num_hashes} hash functions; the pool's network takes {pool.num_hashes}",
        )
    match shared.locality:
        case Locality.FREE:
            _check(
                pool.slots >= shared.chunk_size,
                f"chunk_size is {shared.chunk_size}; the pool has only {pool.slots} slots",
            )
            _check(
                pool.slots - shared.chunk_size < MAX_ADDRESSES,
                f"{pool.slots} slots are too many for locality 'free' (at most 2**32); use 'line' or 'words'",
            )
        case Locality.ALIGNED:
            _check(
                1 <= pool.slots // shared.chunk_size <= MAX_ADDRESSES,
                f"{pool.slots} slots in chunks of {shared.chunk_size}; locality 'aligned' takes 1 to 2**32 chunks",
            )
        case Locality.LINE:
            _check(
                shared.chunk_size <= line_slots,
                f"chunk_size is {shared.chunk_size}; a line of {pool.bits}-bit values has {line_slots} slots",
            )
            _check(pool.lines <= MAX_ADDRESSES, f"{pool.lines} lines are too many (at most 2**32)")
        case Locality.WORDS:
            width = shared.num_hashes * shared.chunk_size
            _check(
                width <= line_slots,
                f"{shared.num_hashes} words of {shared.chunk_size} slots do not fit a line of {line_slots} slots; lower num_hashes or chunk_size",
            )
            _check(
                width * pool.bits >= 8,
                f"{shared.num_hashes} words of {shared.chunk_size} slots of {pool.bits} bits are less than a byte; raise num_hashes or chunk_size",
            )
            _check(pool.slots // width <= MAX_ADDRESSES, f"{pool.slots // width} lines are too many (at most 2**32)")
