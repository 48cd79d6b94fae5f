"""Few-bit values in training: float32 masters that are rounded on the way forward; gradients pass straight through.

Straight-through estimation: Bengio, Leonard and Courville, arXiv 1308.3432. The distance between levels follows the rms of
the masters: for a Gaussian the steps below have the least squared error (Max, "Quantizing for minimum distortion", 1960).
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from hfh_embed.errors import SpecError
from hfh_embed.layout import Array
from hfh_embed.nn.tape import gathered
from hfh_embed.packing import levels_from_codes, pack, unpack

__all__ = [
    "Scaling",
    "StoredValues",
    "half_step_of",
    "levels",
    "loaded_values",
    "noisily_rounded",
    "rounded_rms",
    "widened",
]

STEPS = {1: 1.5958, 2: 0.9957, 4: 0.3352, 8: 0.0308}
"""Step between neighbouring levels, in units of the masters' rms."""
SAMPLE = 2**20
"""The rms of more values than this is taken over evenly spread ones, so that a step does not pay for a huge table."""


class _Levels(torch.autograd.Function):
    """Values to odd integer levels; the gradient is that of dividing by the half step."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, half_step: Tensor, bits: int) -> Tensor:
        half_step = half_step.clamp_min(1e-30)  # that of a row of zeros is 0
        ctx.half_step = half_step
        half = 2 ** (bits - 1)
        return 2 * torch.floor(values / (2 * half_step)).clamp_(-half, half - 1) + 1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] / ctx.half_step, None, None


class _Half(torch.autograd.Function):
    """Values rounded to float16 and back; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.to(torch.float16).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def levels(values: Tensor, half_step: Tensor, bits: int) -> Tensor:
    """Few-bit values as their levels (odd integers as floats), 16-bit ones rounded to float16, 32-bit ones as they are."""
    if bits <= 8:
        result: Tensor = _Levels.apply(values, half_step, bits)  # type: ignore[no-untyped-call]
        return result
    if bits == 16:
        half: Tensor = _Half.apply(values)  # type: ignore[no-untyped-call]
        return half
    return values


def half_step_of(values: Tensor, bits: int) -> Tensor:
    """Half the distance between levels, from the rms of all values: a 0-d float32 tensor; 1 for floats."""
    if bits > 8:
        return torch.ones((), device=values.device)
    flat = values.detach().reshape(-1)
    flat = flat[:: max(1, flat.numel() // SAMPLE)]
    rms = flat.to(torch.float64).square().mean().sqrt()
    return (rms * (STEPS[bits] / 2)).clamp_min(1e-30).to(torch.float32)


def rounded_rms(bits: int) -> float:
    """The rms of a rounded standard Gaussian, by which initial scales are corrected."""
    if bits > 8:
        return 1.0
    x = np.sqrt(2) * _erfinv((np.arange(200_000) + 0.5) / 200_000 * 2 - 1)
    half = 2 ** (bits - 1)
    rounded = (np.clip(np.floor(x / STEPS[bits]), -half, half - 1) + 0.5) * STEPS[bits]
    return float(np.sqrt((rounded**2).mean()))


def _erfinv(x: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return torch.erfinv(torch.from_numpy(x)).numpy()


def widened(values: Tensor) -> Tensor:
    """float32, or float64 where the module was made so: rounding is never done in fewer bits."""
    return values if values.dtype == torch.float64 else values.float()


def _tell_of_fused_steps(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Count the change of what a fused optimizer changed: torch does not, and what is kept of the values would look fresh."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    torch.autograd.graph.increment_version(parameter)


register_optimizer_step_post_hook(_tell_of_fused_steps)


def noisily_rounded(values: Tensor, seed: int) -> Tensor:
    """float32 values as bfloat16, rounded up or down at random so that they are right on average."""
    generator = torch.Generator(values.device).manual_seed(seed)
    noise = torch.randint(0, 2**16, values.shape, dtype=torch.int32, generator=generator, device=values.device)
    return ((values.view(torch.int32) + noise) >> 16).to(torch.int16).view(torch.bfloat16)


class Scaling(enum.Enum):
    """Where the half step of few-bit values comes from."""

    TABLE = "table"  # the rms of all values
    ROW = "row"  # the rms of each row, as float16
    FIXED = "fixed"  # given, for values that were loaded


class StoredValues(nn.Module):
    """A (rows, count) parameter that is stored in ``bits``-bit values and looks that way in the forward pass."""

    half_step: Tensor

    def __init__(self, values: Tensor, bits: int, scaling: Scaling, half_step: Tensor | None = None) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.bits, self.scaling = bits, scaling
        self.scale_dtype = np.dtype(np.float16 if scaling is Scaling.ROW else np.float32)
        self._seen: tuple[int, torch.device] | None = None
        self.register_buffer("half_step", half_step if half_step is not None else torch.ones(()))

    def __setattr__(self, name: str, value: Any) -> None:
        """As any module's, but no values that are sharded: what is remembered of them would go out of date unseen."""
        if name == "values" and hasattr(value, "placements"):
            raise SpecError(
                "the values of HFH layers cannot be sharded, and are small: "
                "call fully_shard(model, ignored_params=hnn.replicate(model)) once, on the whole model"
            )
        super().__setattr__(name, value)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """The values of some rows (n, count), or of all, as float32."""
        values = widened(self.values if rows is None else gathered(self.values, rows))
        if self.bits > 8:
            return levels(values, self.half_step, self.bits)
        half_step = self._half_step(values, rows)
        return levels(values, half_step, self.bits) * half_step

    def _half_step(self, values: Tensor, rows: Tensor | None) -> Tensor:
        if self.scaling is Scaling.ROW:
            return self._row_half_steps(values)
        if self.scaling is Scaling.FIXED:
            return self.half_step if rows is None or self.half_step.dim() == 0 else self.half_step[rows]
        return self.table_half_step()

    def table_half_step(self) -> Tensor:
        """The half step of all values, made anew when they have changed."""
        seen = (self.values._version, self.values.device)
        if self.scaling is Scaling.TABLE and self._seen != seen:
            self.half_step = half_step_of(self.values, self.bits)
            self._seen = seen
        return self.half_step

    def know_rms(self, rms: Tensor) -> None:
        """Take the rms of all values from who changed them, instead of looking at them again."""
        self.half_step = (rms * (STEPS[self.bits] / 2)).clamp_min(1e-30).to(torch.float32)
        self._seen = (self.values._version, self.values.device)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.table_half_step()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._seen = (self.values._version, self.values.device)  # the saved half step is that of the saved values

    def _row_half_steps(self, values: Tensor) -> Tensor:
        rms = values.detach().square().mean(dim=1, keepdim=True).sqrt()
        return (rms * (STEPS[self.bits] / 2)).clamp_min(6e-8).to(torch.float16).float()  # the least float16 above zero

    @torch.no_grad()
    def export(self) -> tuple[Array, Array | None]:
        """The stored values, packed or as floats, and their scales: (1,) float32, (rows,) float16, or as given."""
        values = self.values.detach().float()
        if self.bits > 8:
            return values.cpu().numpy().astype(np.float16 if self.bits == 16 else np.float32), None
        half_step = self._half_step(values, None)
        whole = levels(values, half_step, self.bits)
        codes = ((whole + (2**self.bits - 1)) / 2).to(torch.int32).cpu().numpy()
        scales = half_step.cpu().numpy().reshape(-1)
        return pack(codes, self.bits), scales.astype(self.scale_dtype)


def loaded_values(arrays: Any, part: str, bits: int, count: int) -> StoredValues:
    """A part's values out of a snapshot, with the scales they have there."""
    stored = arrays[f"{part}.values"]
    if bits > 8:
        return StoredValues(torch.from_numpy(stored.astype(np.float32)), bits, Scaling.FIXED)
    scale = torch.from_numpy(arrays[f"{part}.scale"].astype(np.float32).copy())
    whole = torch.from_numpy(levels_from_codes(unpack(stored, count, bits), bits).astype(np.float32))
    half_step = scale[0] if len(scale) == 1 and len(whole) != 1 else scale[:, None]
    loaded = StoredValues(whole * half_step, bits, Scaling.FIXED, half_step)
    loaded.scale_dtype = arrays[f"{part}.scale"].dtype
    return loaded
