"""Rings of bits and maps with bands in torch: fixed rings, trainable values, factors and map."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hfh_embed.layout import Array, TableData
from hfh_embed.nn.rounding import Scaling, StoredValues, widened
from hfh_embed.packing import levels_from_codes, packed_bytes, unpack
from hfh_embed.spec import MapBand, TableSpec
from hfh_embed.windows import windows_of

__all__ = ["BandedMap", "Trellis"]


class Trellis(nn.Module):
    """Latent entries of a trained table by the windows of its ids' rings; see ``reference.py``."""

    codes: Tensor
    place: Tensor
    book: Tensor

    def __init__(self, table: TableSpec, data: TableData) -> None:
        super().__init__()
        assert table.trellis is not None
        self.spec = table.trellis
        windows = windows_of(self.spec)
        self.register_buffer("codes", torch.from_numpy(np.array(data.arrays["trellis.codes"])))
        self.register_buffer("place", torch.from_numpy(windows.place), persistent=False)
        self.register_buffer("book", torch.from_numpy(windows.book), persistent=False)
        self.largest = 2 ** (self.spec.value_bits - 1) - 1
        values = torch.from_numpy(data.arrays["trellis.values"].astype(np.float32))
        self.values = nn.Parameter(values / self.largest)
        self.norms = None
        if self.spec.norm_bits:
            self.norms = nn.Parameter(torch.from_numpy(np.array(data.arrays["trellis.norms"])))

    def forward(self, ids: Tensor) -> Tensor:
        """The first latent entries of ids (B,): (B, trellis.width) float32."""
        spec = self.spec
        first = ids[:, None] * spec.row_bits + spec.norm_bits
        states = self._read(first + self.place, spec.state_bits)
        until = (spec.ring_bits - self.place).clamp_max(spec.state_bits)
        begin = self._read(first, spec.state_bits)
        states = (states & ((1 << until) - 1)) | ((begin << until) & ((1 << spec.state_bits) - 1))
        whole = self._whole()
        z = whole[self.book, states]
        if spec.constant:
            z = nn.functional.pad(z, (0, 1), value=1.0)
        if self.norms is not None:
            z = z * self.norms[self._read(ids * spec.row_bits, spec.norm_bits)][:, None]
        return z

    def _whole(self) -> Tensor:
        """The values as stored integers; the gradient passes the rounding."""
        scaled = widened(self.values) * self.largest
        rounded = scaled.round().clamp(-self.largest - 1, self.largest)
        return scaled + (rounded - scaled).detach() if scaled.requires_grad else rounded

    def _read(self, places: Tensor, count: int) -> Tensor:
        """As ``windows.read_bits``."""
        byte, last = places >> 3, len(self.codes) - 1
        word = self.codes[byte].long()
        for more in (1, 2):
            word = word | self.codes[(byte + more).clamp_max(last)].long() << (8 * more)
        return (word >> (places & 7)) & ((1 << count) - 1)

    @torch.no_grad()
    def arrays(self) -> dict[str, Array]:
        """The stored arrays of this part."""
        dtype = np.int8 if self.spec.value_bits == 8 else np.int16
        out: dict[str, Array] = {
            "trellis.codes": self.codes.cpu().numpy(),
            "trellis.values": self._whole().round().cpu().numpy().astype(dtype),
        }
        if self.norms is not None:
            out["trellis.norms"] = self.norms.float().cpu().numpy()
        return out


class BandedMap(nn.Module):
    """A map (R, D) whose rows are stored in several numbers of bits."""

    def __init__(self, bands: tuple[MapBand, ...], dim: int, stored: Array, scales: Array) -> None:
        super().__init__()
        parts, row, byte = [], 0, 0
        for band in bands:
            last = byte + band.rows * packed_bytes(dim, band.bits)
            codes = unpack(stored[byte:last].reshape(band.rows, -1), dim, band.bits)
            half_step = torch.from_numpy(np.array(scales[row : row + band.rows]))[:, None]
            levels = torch.from_numpy(levels_from_codes(codes, band.bits).astype(np.float32))
            parts.append(StoredValues(levels * half_step, band.bits, Scaling.FIXED, half_step))
            row, byte = row + band.rows, last
        self.parts = nn.ModuleList(parts)

    def forward(self) -> Tensor:
        """The map as it is stored, (R, D) float32."""
        return torch.cat([part() for part in self.parts])

    def export(self) -> tuple[Array, Array]:
        """Packed values and scales."""
        stored = [part.export() for part in self.parts if isinstance(part, StoredValues)]
        scales = [scale for _, scale in stored if scale is not None]
        return np.concatenate([values.reshape(-1) for values, _ in stored]), np.concatenate(scales)
