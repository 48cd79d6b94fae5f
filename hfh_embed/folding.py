"""Writing fresh rows over a dense table, so that the next snapshot has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import InputError

__all__ = ["fold"]

Rows = npt.NDArray[Any]


def fold(dense: Rows, ids: npt.NDArray[np.int64], rows: npt.NDArray[np.float32]) -> Rows:
    """The dense table (N, D) with rows (n, D) of ids (n,) in the place of its own; ``dense`` itself stays as it is.

    It grows to the largest id; ids in between that have no row anywhere get zeros. A memory map of a file stays one: only
    the pages that are written to are copied.

    Raises:
        InputError: rows of another length, or more than half of the added ids would be zeros.
    """
    if not len(ids):
        return dense
    count, dim = dense.shape
    if rows.shape[1] != dim:
        raise InputError(
            f"the rows in the overlay have {rows.shape[1]} entries, the dense table has {dim}; "
            "give the table that the snapshot was made of, and its name with --name"
        )
    fresh, last = int((ids >= count).sum()), int(ids.max())
    if last >= count and last + 1 - count > 2 * fresh:
        raise InputError(
            f"the overlay has rows for {fresh:,} ids beyond the {count:,} of the table, up to id {last:,}: more than half of "
            f"the {last + 1 - count:,} added rows would be zeros. Give fresh ids without gaps, or remove those rows"
        )
    if last < count and isinstance(dense, np.memmap) and dense.filename is not None and dense.flags.c_contiguous:
        folded: Rows = np.memmap(dense.filename, dense.dtype, "c", dense.offset, dense.shape)
    else:
        folded = np.zeros((max(count, last + 1), dim), dtype=dense.dtype)
        folded[:count] = dense
    folded[ids] = rows
    return folded
