"""Tables that are trained whole and take few bytes only afterwards: `hfh compress`, and quantisers of trained tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.quality.methods.base import Arrays, Shapes, TooSmallError
from benchmarks.quality.methods.rows import Full
from hfh_embed import codec
from hfh_embed.codec.peers import PEERS
from hfh_embed.errors import RatioError

__all__ = ["AFTERWARDS", "Compressed"]

F32 = npt.NDArray[np.float32]
Compress = Callable[[F32, Shapes, float, int], tuple[F32, Arrays]]
"""(rows, shapes, ratio, seed) -> the rows that are left, and what would be stored of them."""


class Compressed(Full):
    """The full table until training ends, then what a compressor leaves of it; the model around it stays as it is."""

    def __init__(self, shapes: Shapes, ratio: float, seed: int, compress: Compress) -> None:
        super().__init__(shapes, ratio, seed)
        self._compress = lambda rows: compress(rows, shapes, ratio, seed)
        self._stored: Arrays | None = None

    @torch.no_grad()
    def after_training(self) -> bool:
        rows, self._stored = self._compress(self.values.numpy())
        self.values.copy_(torch.from_numpy(rows))
        return True

    def arrays(self) -> Arrays:
        return super().arrays() if self._stored is None else self._stored


def _hfh(rows: F32, shapes: Shapes, ratio: float, seed: int) -> tuple[F32, Arrays]:
    """`hfh compress` with the ids' frequencies."""
    try:
        snapshot = codec.compress(rows, ratio=ratio, frequencies=shapes.joined_counts, seed=seed)
    except RatioError as error:
        raise TooSmallError(str(error)) from error
    return snapshot["table"].lookup(np.arange(len(rows))), dict(snapshot.arrays)


def _peer(name: str) -> Compress:
    def compress(rows: F32, shapes: Shapes, ratio: float, seed: int) -> tuple[F32, Arrays]:
        if (made := PEERS[name](rows, shapes.budget(ratio))) is None:
            raise TooSmallError(f"{name} has no form of {shapes.budget(ratio):,} bytes")
        return made[0], {"all": np.empty(made[1], dtype=np.uint8)}

    return compress


AFTERWARDS: Mapping[str, Compress] = {
    "hfh after training": _hfh,
    "few bits after training": _peer("few-bit rows"),
    "PQ after training": _peer("faiss PQ"),
    "OPQ after training": _peer("faiss OPQ"),
}
