"""What a dense table may be: an array, a memory map, or a file that is read part by part."""

from __future__ import annotations

import mmap
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["DenseRows", "Float32Rows"]


class DenseRows(Protocol):
    """An (N, D) array of floats, or what can be read like one: consecutive rows, and rows of ascending ids."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    @property
    def dtype(self) -> Any:
        """Of the entries."""

    def __getitem__(self, which: Any, /) -> Any: ...


class Float32Rows:
    """Rows read as float32; with ``nan`` "zero", those with NaN or infinite values as zeros."""

    def __init__(self, rows: DenseRows, nan: str) -> None:
        self.rows, self.nan = rows, nan
        self.shape, self.dtype = rows.shape, np.dtype(np.float32)

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes: a mapped file goes as its name, other rows as they are."""
        rows = self.rows
        if isinstance(rows, np.memmap) and isinstance(rows.base, mmap.mmap) and rows.filename is not None:
            order = "C" if rows.flags.c_contiguous else "F"
            return _mapped, (str(rows.filename), rows.dtype, rows.offset, rows.shape, order, self.nan)
        return Float32Rows, (rows, self.nan)

    def __getitem__(self, which: slice | npt.NDArray[np.int64], /) -> npt.NDArray[np.float32]:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is treated as such
            block: npt.NDArray[np.float32] = np.ascontiguousarray(self.rows[which], dtype=np.float32)
        if self.nan == "zero":
            wrong = np.flatnonzero(~np.isfinite(block).all(axis=1))
            if len(wrong):
                block = block.copy()
                block[wrong] = 0
        return block


def _mapped(
    filename: str, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...], order: Literal["C", "F"], nan: str
) -> Float32Rows:
    return Float32Rows(np.memmap(filename, dtype, "r", offset, shape, order), nan)
