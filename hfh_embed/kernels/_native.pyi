"""Types of the compiled extension."""

from typing import Any

import numpy as np
import numpy.typing as npt

SIMD: str
"""The instructions in use: "portable", "avx2" or "avx512"."""

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]

def addresses(
    key: int,
    slots: int,
    bits: int,
    dim: int,
    num_hashes: int,
    chunk_size: int,
    locality: int,
    lines: int,
    signs: bool,
    ids: I64,
    start: I64,
    rotation: I64,
    negative: npt.NDArray[np.bool_],
) -> None:
    """Write the addresses of ids (B,), each (B, C, U)."""

def gather(table: F32, ids: I64, out: F32) -> None:
    """Rows of an uncompressed (N, D) table into out (B, D), prefetched: what lookups are compared with."""

def kept_places(bits: U8, before: I64, num_embeddings: int, count: int, refuses: bool, ids: I64, places: I64) -> int:
    """Write the place of each id (B,) among those whose bit is set, ``count`` for others; ``before`` counts blocks of 64.

    Returns -1, or the position of the first id that is negative or, with ``refuses``, outside the table.
    """

def json_rows(rows: F32) -> bytes:
    """float32 rows (n, D) as a JSON list of lists, nine significant digits a number; null for what is not finite."""

class Table:
    """One table with the arrays that it points at; ValueError for facts or sizes that would leave them."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        latent_dim: int,
        padding_id: int,
        refuse_unknown: bool,
        zero_unknown: bool,
    ) -> None: ...
    def set_shared(
        self,
        key: int,
        slots: int,
        bits: int,
        dim: int,
        num_hashes: int,
        chunk_size: int,
        locality: int,
        lines: int,
        signs: bool,
        pool: U8,
        scale: float,
    ) -> None: ...
    def set_scale(self, scale: float) -> None: ...
    def set_bilinear(self, linear: F32, quadratic: F32) -> None: ...
    def set_mlp(self, w1: F32, b1: F32, w2: F32, b2: F32) -> None: ...
    def set_private(
        self, values: U8, bits: int, count: int, scale: float, row_scale: U16 | None, weighs: bool
    ) -> None: ...
    def set_exact(self, ids: npt.NDArray[Any], values: U8, bits: int, row_scale: U16 | None) -> None: ...
    def add_level(
        self,
        count: int,
        values: U8,
        bits: int,
        dim: int,
        scale: float,
        map: F32 | None,
        ids: npt.NDArray[Any] | None,
    ) -> None: ...
    def set_level_index(self, index: int, adds: bool, codes: U8 | None, code_bits: int) -> None: ...
    def set_map(self, values: F32, bias: F32 | None) -> None: ...
    def set_residual(self, w1: F32, b1: F32, w2: F32, b2: F32) -> None: ...
    def lookup(self, ids: Any, dtype: Any, num_threads: int = 1) -> npt.NDArray[Any] | None:
        """The rows of ids, shape of ids + (D,), in a new array; None where the plain case does not apply, or an id is refused."""

    def products(self, first: int, hidden: F32, out: F32, num_threads: int) -> None:
        """Write the products of hidden (B, D) with the rows of ids first, first + 1, ... into ``out`` (B, count)."""

    def rows(self, ids: I64, out: npt.NDArray[Any], num_threads: int = 1) -> int:
        """Write rows into ``out`` (B, D), float32 or float16: -1, or the position of the first id that is refused."""

    def plain_bag(
        self, ids: Any, offsets: Any, weights: Any, mode: int, dtype: Any, num_threads: int
    ) -> npt.NDArray[Any] | None:
        """Bags in a new array; None where the plain case does not apply, or an argument or id is refused."""

    def bag(
        self, ids: I64, bounds: I64, weights: F32 | None, mode: int, out: npt.NDArray[Any], num_threads: int
    ) -> int:
        """Write one row for each bag into ``out`` (bags, D), mode 0 sum, 1 mean, 2 max; returns as :meth:`rows`."""

def recycled(rows: int, width: int) -> F32:
    """An uninitialised (rows, width) float32 array in memory that earlier ones gave back."""

def prefer_huge_pages(memory: npt.NDArray[Any]) -> None:
    """Ask the system for huge pages behind an array that nothing was written to yet; nothing happens where it has none."""

def pack(values: F32 | U16, bits: int, half_step: float, packed: U8, num_threads: int) -> None:
    """Write the codes of values (S,), float32 or bfloat16 as uint16, into packed (S * bits / 8,)."""

class Gradients:
    """The gradients of rows over one pool of S slots, from all its tables."""

    def __init__(self, slots: int) -> None: ...
    def add(
        self,
        key: int,
        slots: int,
        bits: int,
        dim: int,
        num_hashes: int,
        chunk_size: int,
        locality: int,
        lines: int,
        signs: bool,
        ids: I64,
        grads: F32,
        factor: float,
    ) -> None:
        """Take the gradients (B, dim) of the shared part of ids (B,); ``factor`` is what a value counts in a row."""

    def clear(self) -> None:
        """Forget what was collected."""

    def __len__(self) -> int:
        """Chunks of ids that were collected."""

    def into(self, gradient: F32, num_threads: int) -> None:
        """Add to a gradient of the whole pool, (S,)."""

    def sgd(self, values: F32 | U16, packed: U8, rate: float, seed: int, num_threads: int) -> float:
        """One step on the touched lines; returns by how much the sum of all squared values grew.

        Values are float32, or bfloat16 as uint16, which are rounded up or down at random, right on average, by ``seed``.
        """

    def adam(
        self,
        values: F32 | U16,
        first_moment: F32,
        second_moment: F32,
        packed: U8,
        rate: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        seed: int,
        num_threads: int,
    ) -> float:
        """One step of Adam on the touched lines; returns as :meth:`sgd`."""

class Trellis:
    """A trellis: runs (n, 3) of steps, entries of a step and bits of a step; ValueError for facts that do not fit."""

    def __init__(
        self,
        runs: npt.NDArray[np.int64],
        state_bits: int,
        values: npt.NDArray[np.float32],
        norms: npt.NDArray[np.float32],
        constant: bool,
    ) -> None: ...
    def encode(
        self,
        rows: npt.NDArray[np.float32],
        weight: npt.NDArray[np.float32],
        states: npt.NDArray[np.uint16],
        num_threads: int,
    ) -> None:
        """Write the states (n, steps) of the rings that describe rows (n, entries) best."""

class StageSearch:
    """Centroids (stages * 256, width) of stages and their products with each other; ValueError for sizes that do not fit."""

    def __init__(self, centroids: npt.NDArray[np.float32], products: npt.NDArray[np.float32]) -> None: ...
    def search(
        self,
        rows: npt.NDArray[np.float32],
        beam: int,
        codes: npt.NDArray[np.uint8],
        num_threads: int,
    ) -> None:
        """Write the codes (n, stages) of rows (n, width), keeping ``beam`` partial codes from stage to stage."""

class CodedPart:
    """A table whose rows are codes and a map; ValueError for facts that would leave the arrays."""

    def __init__(
        self,
        num_embeddings: int,
        trellis: Trellis | None,
        ring_codes: npt.NDArray[np.uint8],
        chunks: npt.NDArray[np.int64],
        codebooks: npt.NDArray[np.float32],
        chunk_codes: npt.NDArray[np.uint8],
        map: npt.NDArray[np.float32],
        bias: npt.NDArray[np.float32],
        padding_id: int,
        refuse_unknown: bool,
    ) -> None: ...
    def lookup(self, ids: Any, dtype: Any, num_threads: int = 1) -> npt.NDArray[Any] | None:
        """Rows in a new array, or None where the plain case does not apply."""

    def rows(self, ids: npt.NDArray[np.int64], out: npt.NDArray[Any], num_threads: int = 1) -> int:
        """Write whole rows, float32 or float16; -1, or the position of the first refused id."""

    def products(
        self, first: int, hidden: npt.NDArray[np.float32], out: npt.NDArray[np.float32], num_threads: int
    ) -> None:
        """Write the products of hidden (B, D) with the rows of ids first, first + 1, ... into ``out`` (B, count)."""

    def add(
        self,
        ids: npt.NDArray[np.int64],
        z: npt.NDArray[np.float32],
        out: npt.NDArray[np.float32],
        num_threads: int = 1,
    ) -> None:
        """Write (latent rows z plus codes) @ map + bias; an id outside the table has no codes. ``z`` is written over."""

TILES: bool
"""Whether this process multiplies tiles (AMX), which :class:`Vocabulary` needs."""

class Vocabulary:
    """The softmax of hidden states (B, D) over rows that come a tile at a time; for one thread of Python."""

    def __init__(self, hidden: F32) -> None: ...
    def forward(self, rows: F32, scale: float, bias: F32, num_threads: int) -> None:
        """Take rows (T, D) into the softmax: logits are scale * (hidden @ rows.T) + bias; ``bias`` is (T,) or empty."""

    def normalizers(self, out: F32) -> None:
        """log(sum(exp(logits))) of each hidden state, (B,), of the rows taken so far."""

    def backward(
        self,
        rows: F32,
        first: int,
        scale: float,
        bias: F32,
        normalizer: F32,
        counted: F32,
        spread: F32,
        hit: F32,
        targets: I64,
        of_rows: F32,
        of_bias: F32,
        num_threads: int,
    ) -> None:
        """From the gradients of logits, counted * softmax - spread and less hit at the target's, those of scaled rows and of bias.

        ``first`` is the id of the first row; those of hidden states are summed up, see :meth:`hidden_gradients`.
        """

    def hidden_gradients(self, out: F32) -> None:
        """The sums of all calls of :meth:`backward`, (B, D)."""
