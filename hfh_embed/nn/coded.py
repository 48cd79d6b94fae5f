"""The coded part in torch: fixed codes, trainable codebooks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hfh_embed.layout import Array, TableData
from hfh_embed.nn.rounding import Scaling, StoredValues
from hfh_embed.packing import levels_from_codes, pack, unpack
from hfh_embed.spec import CodeChunk, TableSpec

__all__ = ["Coded"]


class Coded(nn.Module):
    """Rows of a trained table by their codes; see ``reference.py``."""

    codes: Tensor
    row_scale: Tensor

    def __init__(self, table: TableSpec, data: TableData) -> None:
        super().__init__()
        assert table.coded is not None
        self.table, self.spec = table, table.coded
        arrays = data.arrays
        self.register_buffer("codes", torch.from_numpy(np.array(arrays["coded.codes"])))
        bits, count = self.spec.codebook_bits, self.spec.codebook_values
        flat = arrays["coded.codebooks"]
        if bits <= 8:
            scales = arrays["coded.codebook_scales"].astype(np.float32)
            sizes = [chunk.size << chunk.bits for chunk in self.spec.chunks]
            half_step = torch.from_numpy(np.repeat(scales, sizes)[None])
            values = torch.from_numpy(levels_from_codes(unpack(flat, count, bits), bits).astype(np.float32)[None])
            self.books = StoredValues(values * half_step, bits, Scaling.FIXED, half_step)
        else:
            self.books = StoredValues(torch.from_numpy(flat.astype(np.float32)[None]), bits, Scaling.FIXED)
        if self.spec.row_scale:
            self.register_buffer("row_scale", torch.from_numpy(np.array(arrays["coded.row_scale"])))

    def forward(self, ids: Tensor) -> Tensor:
        """The coded latent entries of ids (B,): (B, R) float32."""
        packed = nn.functional.pad(self.codes[ids].to(torch.int32), (0, 2))
        flat = self.books()[0]
        pieces = []
        bit = first = 0
        for chunk in self.spec.chunks:
            byte, shift = divmod(bit, 8)
            word = packed[:, byte] | packed[:, byte + 1] << 8 | packed[:, byte + 2] << 16
            code = (word >> shift) & ((1 << chunk.bits) - 1)
            book = flat[first : first + (chunk.size << chunk.bits)].view(-1, chunk.size)
            pieces.append(nn.functional.embedding(code, book))
            bit += chunk.bits
            first += chunk.size << chunk.bits
        z = self._together(pieces, self.spec.chunks)
        return z * self.row_scale[ids].float()[:, None] if self.spec.row_scale else z

    def _together(self, pieces: list[Tensor], chunks: tuple[CodeChunk, ...]) -> Tensor:
        ends = [chunk.start + chunk.size for chunk in chunks]
        if [chunk.start for chunk in chunks] == [0, *ends[:-1]] and ends[-1] == self.table.latent_dim:
            return torch.cat(pieces, dim=1)
        z = pieces[0].new_zeros(len(pieces[0]), self.table.latent_dim)
        for piece, chunk in zip(pieces, chunks, strict=True):
            z = z + nn.functional.pad(piece, (chunk.start, self.table.latent_dim - chunk.start - chunk.size))
        return z

    @torch.no_grad()
    def arrays(self) -> dict[str, Array]:
        """The stored arrays of this part."""
        out: dict[str, Array] = {"coded.codes": self.codes.cpu().numpy()}
        bits = self.spec.codebook_bits
        values = self.books.values.detach().float().cpu().numpy().reshape(-1)
        if bits > 8:
            out["coded.codebooks"] = values.astype(np.float16 if bits == 16 else np.float32)
        else:
            whole = (self.books()[0] / self.books.half_step[0]).round().cpu().numpy()
            out["coded.codebooks"] = pack(((whole + (2**bits - 1)) / 2).astype(np.int32), bits)
            firsts = np.cumsum([0, *(chunk.size << chunk.bits for chunk in self.spec.chunks)])[:-1]
            out["coded.codebook_scales"] = self.books.half_step[0].cpu().numpy()[firsts].astype(np.float32)
        if self.spec.row_scale:
            out["coded.row_scale"] = self.row_scale.cpu().numpy()
        return out
