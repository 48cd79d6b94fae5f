"""The method, fast: backends with one interface, each held to ``hfh_embed.reference`` by one suite.

``native`` (compiled) is used where the extension was built, else ``numpy``; HFH_KERNELS=native|numpy chooses.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import InputError, MissingDependencyError
from hfh_embed.layout import TableData

__all__ = ["Kernel", "backends", "json_rows", "native_chosen", "prepare"]

Mode = Literal["sum", "mean", "max"]


class Kernel(Protocol):
    """One table, ready for lookups from many threads, also after a fork."""

    def lookup(self, ids: Any, dtype: Any, num_threads: int = 1) -> npt.NDArray[Any] | None:
        """The short way for the plain case: rows in a new array, or None where :meth:`rows` has to be asked."""

    def rows(self, ids: npt.NDArray[np.int64], out: npt.NDArray[Any], num_threads: int = 1) -> int:
        """Write the rows of ids (B,) into out (B, D), float32 or float16, both C-contiguous.

        Returns -1, or the position of the first id that is refused: negative, or outside a table whose policy is
        ``error``. ``out`` is then unspecified.
        """

    def plain_bag(
        self, ids: Any, offsets: Any, weights: Any, mode: Mode, dtype: Any, num_threads: int = 1
    ) -> npt.NDArray[Any] | None:
        """The short way for 1-D ids with the begins of the bags: a new array, or None where :meth:`bag` has to be asked."""

    def bag(
        self,
        ids: npt.NDArray[np.int64],
        bounds: npt.NDArray[np.int64],
        weights: npt.NDArray[np.float32] | None,
        mode: Mode,
        out: npt.NDArray[Any],
        num_threads: int = 1,
    ) -> int:
        """Write one row for each bag, ids[bounds[k] : bounds[k + 1]], into out (bags, D); returns as :meth:`rows`.

        ``bounds`` (bags + 1,) ascend within the ids; ``weights`` (len(ids),) only with mode "sum".
        """


def backends() -> tuple[str, ...]:
    """The backends that work here, best first."""
    native = importlib.util.find_spec("hfh_embed.kernels._native") is not None
    return ("native", "numpy") if native else ("numpy",)


@functools.cache
def _default() -> str:
    available = backends()
    if wanted := os.environ.get("HFH_KERNELS"):
        return wanted
    if "native" not in available:
        logging.getLogger("hfh_embed").warning(
            "the compiled kernels are not installed, so numpy does the work, slower; "
            "reinstall hfh-embed where a C++ compiler is found to have them"
        )
    return available[0]


def native_chosen() -> bool:
    """Whether the compiled kernels are installed and not switched off."""
    return _default() == "native"


def json_rows(rows: npt.NDArray[Any]) -> bytes | None:
    """float32 rows (n, D) as a JSON list of lists, nine significant digits a number, which read back as the same float32; null
    for what is not finite. None where the compiled kernels are not there or do not take this array.
    """
    if not native_chosen() or rows.dtype != np.float32 or rows.ndim != 2 or not rows.flags.c_contiguous:
        return None
    from hfh_embed.kernels._native import json_rows as native

    return native(rows)


def prepare(data: TableData, backend: str | None = None) -> Kernel:
    """A kernel for this table: of the backend named, or of the best that is installed."""
    chosen = backend or _default()
    if chosen == "numpy":
        if data.table.kept is not None:
            from hfh_embed.kernels.kept import KeptKernel

            return KeptKernel(data, functools.partial(prepare, backend=chosen))
        from hfh_embed.kernels.numpy_backend import NumpyKernel

        return NumpyKernel(data)
    if chosen != "native":
        raise InputError(f"kernels {chosen!r} do not exist; HFH_KERNELS may be native or numpy")
    if "native" not in backends():
        raise MissingDependencyError(
            "the compiled kernels are not installed; reinstall hfh-embed where a C++ compiler is found, or use numpy"
        )
    if data.table.kept is not None:
        from hfh_embed.kernels._native import kept_places
        from hfh_embed.kernels.kept import KeptKernel

        return KeptKernel(data, functools.partial(prepare, backend=chosen), kept_places)
    if data.table.coded is not None or data.table.trellis is not None:
        from hfh_embed.kernels.native_coded import NativeCodedKernel

        return NativeCodedKernel(data)
    from hfh_embed.kernels.native_backend import NativeKernel

    return NativeKernel(data)
