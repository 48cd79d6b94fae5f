"""The parts that rows are made of, each a frozen set of facts: the pool and what a table has of its own.

Codes are in ``coded_parts.py``; ``spec.py`` puts all together into a table. Letters: N ids, D embedding_dim, R latent_dim, S slots, U num_hashes, Z chunk_size.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from hfh_embed.errors import SpecError

__all__ = [
    "LINE_BITS",
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
    "Unknown",
]

LINE_BITS = 512
"""One cache line, the unit of a pool's size and of line-local addressing."""
VALUE_BITS = (1, 2, 4, 8, 16, 32)
MAX_DIM = 65_536
MAX_HASHES = 64
MAX_HIDDEN = 4_096
MAX_CHUNKS = 65_536
MAX_RUNS = 256
MAX_IDS = 2**63 - 1
MAX_LEVELS = 15
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


class LevelIndex(enum.StrEnum):
    """How a table finds the ids of its levels."""

    FIRST = "first"  # levels are the first ids, in their order: nothing is stored
    CODES = "codes"  # a few bits for every id of the table name its level
    IDS = "ids"  # the ids of each level, ascending


class Unknown(enum.StrEnum):
    """What an id outside [0, N) gets when served."""

    RECONSTRUCT = "reconstruct"
    ZERO = "zero"
    ERROR = "error"


def check(condition: bool, message: str) -> None:
    """SpecError with this message unless the condition holds."""
    if not condition:
        raise SpecError(message)


def check_range(what: str, value: int, low: int, high: int) -> None:
    """SpecError unless value is an integer from low to high."""
    check(
        isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
        f"{what} is {value!r}; give an integer from {low} to {high}",
    )


def check_bits(what: str, bits: int, allowed: tuple[int, ...] = VALUE_BITS) -> None:
    """SpecError unless bits are allowed."""
    check(bits in allowed, f"{what} is {bits!r}; allowed are {', '.join(map(str, allowed))}")


def check_name(what: str, name: str) -> None:
    """Names appear in URLs and in the file's tensor names, so they are plain."""
    check(
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
        check_bits("the pool's bits", self.bits)
        check_range("slots", self.slots, 1, 2**48)
        check(
            self.slots * self.bits % LINE_BITS == 0,
            f"{self.slots} slots of {self.bits} bits are not whole 64-byte lines; use a multiple of {LINE_BITS // self.bits} slots",
        )
        check_range("the pool's seed", self.seed, 0, 2**64 - 1)
        match self.reconstruction:
            case Reconstruction.SUM:
                check(
                    self.num_hashes == 0 and self.hidden == 0,
                    "a sum has no network; leave the pool's num_hashes and hidden at 0",
                )
            case Reconstruction.BILINEAR:
                check_range("the pool's num_hashes", self.num_hashes, 1, MAX_HASHES)
                check(self.hidden == 0, "a bilinear reconstruction has no hidden layer; leave hidden at 0")
            case Reconstruction.MLP:
                check_range("the pool's num_hashes", self.num_hashes, 1, MAX_HASHES)
                check_range("hidden", self.hidden, 1, MAX_HIDDEN)

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
        check_range("the shared part's dim", self.dim, 1, MAX_DIM)
        check_range("key", self.key, 0, 2**64 - 1)
        check_range("num_hashes", self.num_hashes, 1, MAX_HASHES)
        check_range("chunk_size", self.chunk_size, 1, MAX_DIM)
        check(isinstance(self.signs, bool), f"signs is {self.signs!r}; give true or false")
        if self.locality is Locality.WORDS:
            size = self.chunk_size
            check(
                size <= 128 and size & (size - 1) == 0,
                f"chunk_size is {size}; rotated words need a power of two up to 128",
            )
            check(
                self.num_hashes & (self.num_hashes - 1) == 0,
                f"num_hashes is {self.num_hashes}; a line is divided into words by a power of two",
            )
        if self.locality is Locality.LINE:
            check_range("lines", self.lines, 1, MAX_HASHES)
        else:
            check(self.lines == 1, f"lines is {self.lines}; only locality 'line' takes more than 1")

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
        check_range("the private part's dim", self.dim, 1, MAX_DIM)
        check_bits("the private part's bits", self.bits)
        check(
            not (self.row_scale and self.bits > 8),
            "16- and 32-bit coefficients need no row scale; set row_scale to false",
        )


@dataclass(frozen=True)
class MapBand:
    """``rows`` rows of a map in values of ``bits`` bits."""

    rows: int
    bits: int

    def __post_init__(self) -> None:
        check_range("a band's rows", self.rows, 1, MAX_DIM)
        check_range("a band's bits", self.bits, 1, 8)


@dataclass(frozen=True)
class ExactSpec:
    """``count`` ids whose z is stored outright in ``bits`` bits an entry; few-bit ones have a float16 scale a row."""

    count: int
    bits: int

    def __post_init__(self) -> None:
        check_range("the number of exact rows", self.count, 1, MAX_IDS)
        check_bits("the exact rows' bits", self.bits)


@dataclass(frozen=True)
class KeptSpec:
    """``count`` ids that are kept: every other id's row is zeros, and takes one bit.

    The rest of the table sees only kept ids, numbered 0 to count - 1 in their order.
    """

    count: int

    def __post_init__(self) -> None:
        check_range("the number of kept ids", self.count, 1, MAX_IDS)


@dataclass(frozen=True)
class Level:
    """``count`` ids with rows of ``dim`` values of ``bits`` bits (few-bit ones with one scale for all).

    Where that is less than the latent row, a linear map of the level makes one of it, in ``map_bits``-bit values (few-bit ones
    with a float16 scale an entry of the level's rows).
    """

    count: int
    bits: int
    dim: int
    map_bits: int = 8

    def __post_init__(self) -> None:
        check_range("a level's count", self.count, 1, MAX_IDS)
        check_bits("a level's bits", self.bits)
        check_range("a level's dim", self.dim, 1, MAX_DIM)
        check_bits("the bits of a level's map", self.map_bits, (4, 8, 16, 32))


@dataclass(frozen=True)
class LevelsSpec:
    """Exact rows in levels: disjoint sets of ids, as a rule by falling frequency, whose rows are narrower from one to the next.

    With ``adds`` they are added to what the other parts give, else they are in its place.
    """

    each: tuple[Level, ...]
    index: LevelIndex = LevelIndex.FIRST
    adds: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", LevelIndex(self.index))
        check(0 < len(self.each) <= MAX_LEVELS, f"{len(self.each)} levels; give 1 to {MAX_LEVELS}")
        check(isinstance(self.adds, bool), f"adds is {self.adds!r}; give true or false")
        check_range("the ids of all levels", self.count, 1, MAX_IDS)

    @property
    def count(self) -> int:
        """Ids in all levels."""
        return sum(level.count for level in self.each)

    def first_code(self, num_embeddings: int) -> int:
        """The code of the first level: 1 where 0 stands for ids without a level."""
        return int(self.count < num_embeddings)

    def code_bits(self, num_embeddings: int) -> int:
        """Bits of a code that names an id's level: 1, 2 or 4. Where every id of the table has a level none stands for no level."""
        codes = self.first_code(num_embeddings) + len(self.each)
        return next(bits for bits in (1, 2, 4) if codes <= 1 << bits)


@dataclass(frozen=True)
class MapSpec:
    """A linear map from R latent entries to D, in ``bits``-bit values (few-bit ones with a float32 scale a latent entry).

    ``bands`` give rows, in their order, fewer bits than 8: the first entries of a latent row are worth more of them.
    """

    bits: int = 32
    bias: bool = False
    bands: tuple[MapBand, ...] = ()

    def __post_init__(self) -> None:
        check_bits("the map's bits", self.bits, (4, 8, 16, 32))
        check(not self.bands or self.bits == 8, f"the map's bits are {self.bits}; with bands they are 8")
        check(len(self.bands) <= MAX_RUNS, f"{len(self.bands)} bands; give at most {MAX_RUNS}")


@dataclass(frozen=True)
class ResidualSpec:
    """A network with one hidden relu layer that corrects the finished row. Tables that name the same ``group`` share it."""

    group: str
    hidden: int

    def __post_init__(self) -> None:
        check_name("the residual's group", self.group)
        check_range("the residual's hidden", self.hidden, 1, MAX_HIDDEN)
