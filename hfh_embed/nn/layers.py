"""Layers whose weights are the rows of a table: the paper's use, one pool and one ratio for a whole model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hfh_embed.errors import SpecError
from hfh_embed.nn.embedding import Lookup

__all__ = ["HFHConv2d", "HFHLinear"]


class HFHLinear(Lookup):
    """``torch.nn.Linear`` whose weight is a table with one row an output.

    ``options`` are those of :class:`HFHEmbedding`; ``std`` defaults to nn.Linear's, 1 / sqrt(3 * in_features).
    On a shared pool the table is (out_features, in_features).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **options: Any) -> None:
        options.setdefault("std", 1 / math.sqrt(3 * in_features))
        super().__init__(out_features, in_features, None, **options)
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        """(*, in_features) to (*, out_features)."""
        return nn.functional.linear(input, self.weight.to(input.dtype), self.bias)


class HFHConv2d(Lookup):
    """``torch.nn.Conv2d`` whose kernels are a table with one row an output channel; not for groups or padding modes."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
        **options: Any,
    ) -> None:
        height, width = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        entries = in_channels * height * width
        if min(in_channels, out_channels, height, width) < 1:
            raise SpecError(
                f"{in_channels} to {out_channels} channels of {height} x {width} are impossible; use 1 or more"
            )
        options.setdefault("std", 1 / math.sqrt(3 * entries))
        super().__init__(out_channels, entries, None, **options)
        self.kernel_shape = (out_channels, in_channels, height, width)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W')."""
        kernels = self.weight.view(self.kernel_shape).to(input.dtype)
        return nn.functional.conv2d(input, kernels, self.bias, self.stride, self.padding, self.dilation)
