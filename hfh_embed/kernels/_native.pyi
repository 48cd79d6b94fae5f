"""Types of the compiled extension."""

import numpy as np
import numpy.typing as npt

SIMD: str
"""The instructions in use: "portable", "avx2" or "avx512"."""

class SharedPart:
    """The shared part of one table over one pool; ValueError for facts that would leave the pool."""

    def __init__(
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
    ) -> None: ...
    def sums(
        self, pool: npt.NDArray[np.uint8], scale: float, ids: npt.NDArray[np.int64], out: npt.NDArray[np.float32]
    ) -> None:
        """Write scale * the sum of the fetched values of ids (B,) into out (B, dim)."""

    def rows(
        self,
        pool: npt.NDArray[np.uint8],
        scale: float,
        ids: npt.NDArray[np.int64],
        out: npt.NDArray[np.float32],
        num_embeddings: int,
        refuse_unknown: bool,
        zero_unknown: bool,
        padding_id: int,
        num_threads: int,
    ) -> int:
        """Write whole rows; -1, or the position of the first refused id. ``padding_id`` is -1 where there is none."""

    def rows_half(
        self,
        pool: npt.NDArray[np.uint8],
        scale: float,
        ids: npt.NDArray[np.int64],
        out: npt.NDArray[np.uint16],
        num_embeddings: int,
        refuse_unknown: bool,
        zero_unknown: bool,
        padding_id: int,
        num_threads: int,
    ) -> int:
        """As rows, in float16, whose bits ``out`` holds."""

    def addresses(
        self,
        ids: npt.NDArray[np.int64],
        start: npt.NDArray[np.int64],
        rotation: npt.NDArray[np.int64],
        negative: npt.NDArray[np.bool_],
    ) -> None:
        """Write the addresses of ids (B,) into three arrays (B, C, U)."""

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

class CodedPart:
    """A table whose rows are codes and a map; ValueError for facts that would leave the arrays."""

    def __init__(
        self,
        num_embeddings: int,
        trellis: Trellis | None,
        chunks: npt.NDArray[np.int64],
        codebooks: npt.NDArray[np.float32],
        map: npt.NDArray[np.float32],
        bias: npt.NDArray[np.float32],
    ) -> None: ...
    def rows(
        self,
        ring_codes: npt.NDArray[np.uint8],
        chunk_codes: npt.NDArray[np.uint8],
        ids: npt.NDArray[np.int64],
        out: npt.NDArray[np.float32],
        refuse_unknown: bool,
        padding_id: int,
        num_threads: int,
    ) -> int:
        """Write whole rows; -1, or the position of the first refused id."""

    def rows_half(
        self,
        ring_codes: npt.NDArray[np.uint8],
        chunk_codes: npt.NDArray[np.uint8],
        ids: npt.NDArray[np.int64],
        out: npt.NDArray[np.uint16],
        refuse_unknown: bool,
        padding_id: int,
        num_threads: int,
    ) -> int:
        """As rows, in float16, whose bits ``out`` holds."""
