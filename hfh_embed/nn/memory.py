"""Memory for values that are read in places far apart, a step after another."""

from __future__ import annotations

import torch
from torch import Tensor

from hfh_embed.kernels import native_chosen

__all__ = ["spread_out"]

LARGE = 2**22


def spread_out(*shape: int, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """An uninitialised tensor; a large one on the CPU lies in huge pages where the system has them, which saves page misses."""
    made = torch.empty(*shape, dtype=dtype, device=device)
    if made.device.type == "cpu" and made.nbytes >= LARGE and native_chosen():
        from hfh_embed.kernels._native import prefer_huge_pages

        prefer_huge_pages(made.view(-1).view(torch.uint8).numpy())
    return made
