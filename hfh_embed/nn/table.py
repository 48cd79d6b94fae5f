"""One table in torch: everything of a TableSpec, trainable, giving the same rows as the snapshot that it saves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfh_embed.errors import SpecError, UnknownIdError
from hfh_embed.frequent import exact_ids, kept_ids, level_ids
from hfh_embed.layout import Array, TableData
from hfh_embed.nn.coded import Coded
from hfh_embed.nn.compiled_table import coded_rows
from hfh_embed.nn.levels import Levels
from hfh_embed.nn.pool import Pool, shared_std
from hfh_embed.nn.rounding import Scaling, StoredValues, loaded_values, rounded_rms
from hfh_embed.nn.trellis import BandedMap, Trellis
from hfh_embed.packing import pack, unpack
from hfh_embed.spec import PrivateRole, TableSpec

__all__ = ["Rows"]

ADDED = 0.3
"""Standard deviation of levels that are added to other parts, in units of theirs: rows begin as what is shared, and grow apart."""


class Rows(nn.Module):
    """The parts of one table, and :meth:`rows` that puts them together as ``hfh_embed.reference`` defines.

    Args:
        spec: the table.
        pool: what the shared part reads and where residual networks live; None for a table without either.
        std: standard deviation of initial rows.
        loaded: take the values from here instead of drawing them.
    """

    scale: Tensor
    private: StoredValues
    exact: StoredValues
    exact_ids: Tensor
    places: Tensor
    map: StoredValues | BandedMap
    map_bias: nn.Parameter | None

    def __init__(self, spec: TableSpec, pool: Pool | None, std: float = 1.0, loaded: TableData | None = None) -> None:
        super().__init__()
        self.spec, self.pool = spec, pool
        if (spec.shared is not None or spec.residual is not None) and pool is None:
            raise SpecError(f"table {spec.name!r} reads a pool; give it one")
        frequencies = None if pool is None else pool.frequencies.get(spec.name)
        if spec.kept is not None:
            frequencies = self._keep(frequencies, loaded)
        if spec.shared is not None:
            assert pool is not None
            self.register_buffer(
                "scale", torch.tensor(pool.initial_scale(spec, shared_std(spec, std)), dtype=torch.float32)
            )
        if spec.private is not None:
            self._make_private(std)
        if spec.exact is not None:
            self._make_exact(frequencies, std)
        self.levels = self._levels(frequencies, std, loaded) if spec.levels is not None else None
        if spec.map is not None:
            matrix = torch.randn(spec.latent_dim, spec.embedding_dim) / math.sqrt(spec.latent_dim)
            self.map = StoredValues(
                matrix, spec.map.bits, Scaling.FIXED, matrix.abs().amax(1, keepdim=True) / 2**spec.map.bits
            )
            self.map_bias = nn.Parameter(torch.zeros(spec.embedding_dim)) if spec.map.bias else None
        self.coded = Coded(spec.inner, loaded) if spec.coded is not None and loaded is not None else None
        self.trellis = Trellis(spec.inner, loaded) if spec.trellis is not None and loaded is not None else None
        if (spec.coded is not None or spec.trellis is not None) and loaded is None:
            raise SpecError("codes describe a table that is already trained; use from_pretrained")
        if loaded is not None:
            self._load(loaded)

    def _make_private(self, std: float) -> None:
        private = self.spec.private
        assert private is not None
        drawn = torch.randn(self.spec.num_kept, private.dim)
        spread = 1.0 if private.role is PrivateRole.WEIGH else std
        scaling = Scaling.ROW if private.row_scale else Scaling.TABLE
        self.private = StoredValues(drawn * (spread / rounded_rms(private.bits)), private.bits, scaling)

    def _keep(self, frequencies: Any, loaded: TableData | None) -> Any:
        """Find the places of kept ids; returns their frequencies."""
        spec = self.spec
        assert spec.kept is not None
        if loaded is not None:
            kept = np.flatnonzero(unpack(loaded.arrays["kept.bits"], spec.num_embeddings, 1))[: spec.kept.count]
        elif frequencies is None:
            kept = np.arange(spec.kept.count)
        else:
            frequencies = np.asarray(frequencies)
            kept = kept_ids(spec, frequencies)
        places = torch.full((spec.num_embeddings,), -1, dtype=torch.int32)
        places[torch.from_numpy(kept)] = torch.arange(len(kept), dtype=torch.int32)
        self.register_buffer("places", places)
        return None if frequencies is None else frequencies[kept]

    def _make_exact(self, frequencies: Any, std: float) -> None:
        exact = self.spec.exact
        assert exact is not None
        ids = np.arange(exact.count)
        if frequencies is not None:
            ids = exact_ids(self.spec.inner, np.asarray(frequencies))
        self.exact = StoredValues(torch.randn(exact.count, self.spec.latent_dim) * std, exact.bits, Scaling.ROW)
        self.register_buffer("exact_ids", torch.from_numpy(ids.astype(np.int64)))

    def _levels(self, frequencies: Any, std: float, loaded: TableData | None) -> Levels:
        spec = self.spec.inner
        assert spec.levels is not None
        members = None if frequencies is None else level_ids(spec, np.asarray(frequencies))
        return Levels(spec, members, ADDED * std if spec.levels.adds and _has_others(spec) else std, loaded)

    def check(self, ids: Tensor) -> None:
        """Raise UnknownIdError for ids outside the table. Only on the CPU: elsewhere it would wait for the device."""
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise TypeError(f"ids have dtype {ids.dtype}; give int32 or int64")
        if ids.device.type == "cpu" and ids.numel():
            low, high = (int(bound) for bound in ids.aminmax())
            if low < 0 or high >= self.spec.num_embeddings:
                wrong = low if low < 0 else high
                raise UnknownIdError(
                    f"id {wrong} is outside the table, which has ids 0 to {self.spec.num_embeddings - 1}"
                )

    def is_cheap(self) -> bool:
        """Whether a row costs less than finding out whether its id was in the batch before."""
        spec = self.spec
        networks = (spec.map, spec.residual, spec.coded, spec.levels)
        return self.pool is not None and all(p is None for p in networks) and self.pool.compiled_path() is not None

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of ids (B,), each inside the table: (B, D)."""
        if self.spec.kept is None:
            e = self._rows(ids)
        else:
            places = self.places[ids].long()
            e = self._rows(places.clamp_min(0)).masked_fill((places < 0)[:, None], 0)
        if self.spec.padding_id is not None:
            e = e.masked_fill((ids == self.spec.padding_id)[:, None], 0)
        return e

    def _rows(self, ids: Tensor) -> Tensor:
        """The rows of kept ids, by their places."""
        spec, pool = self.spec, self.pool
        if (self.coded is not None or self.trellis is not None) and (known := coded_rows(self, ids)) is not None:
            return known
        e = self._latent(ids) if self.levels is None else self.levels(ids, self._latent if _has_others(spec) else None)
        if spec.map is not None:
            e = e @ self.map()
            if self.map_bias is not None:
                e = e + self.map_bias
        if spec.residual is not None:
            assert pool is not None
            e = pool.residual(spec.residual.group)(e)
        return e

    def _latent(self, ids: Tensor) -> Tensor:
        """z of ids, (B, R), in the order of operations that every backend has."""
        spec = self.spec
        z: Tensor | None = None
        weights = None
        if spec.private is not None:
            own = self.private(ids)
            if spec.private.role is PrivateRole.WEIGH:
                weights = own
            else:
                z = _placed(own, 0, spec.latent_dim)
        if spec.shared is not None:
            assert self.pool is not None
            common = self.pool.fetch_sum(spec, ids, self.scale, weights)
            common = _placed(common, spec.latent_dim - spec.shared.dim, spec.latent_dim)
            z = common if z is None else z + common
        if self.coded is not None:
            codes = self.coded(ids)
            z = codes if z is None else z + codes
        if self.trellis is not None:
            rings = _placed(self.trellis(ids), 0, spec.latent_dim)
            z = rings if z is None else z + rings
        assert z is not None
        if spec.exact is not None:
            place = torch.searchsorted(self.exact_ids, ids).clamp_max(len(self.exact_ids) - 1)
            hit = self.exact_ids[place] == ids
            z = torch.where(hit[:, None], self.exact(place).to(z.dtype), z)
        return z

    @torch.no_grad()
    def arrays(self) -> dict[str, Array]:
        """The stored arrays of this table, by the names of :func:`hfh_embed.layout.table_arrays`."""
        spec = self.spec
        out: dict[str, Array] = {}
        if spec.shared is not None:
            assert self.pool is not None
            scale = self.scale
            if self.pool.spec is not None and self.pool.spec.reconstruction.value == "sum":
                scale = self.pool.multiplier(scale)
            out["shared.scale"] = scale.reshape(1).cpu().numpy().astype(np.float32)
        for part in ("private", "exact", "map"):
            if getattr(spec, part) is not None:
                values, scales = getattr(self, part).export()
                out[f"{part}.values"] = values
                if scales is not None:
                    out[f"{part}.scale"] = scales
        if spec.exact is not None:
            out["exact.ids"] = self.exact_ids.cpu().numpy().astype(np.uint32 if spec.num_kept <= 2**32 else np.int64)
        if spec.map is not None and self.map_bias is not None:
            out["map.bias"] = self.map_bias.cpu().numpy().astype(np.float32)
        if spec.kept is not None:
            out["kept.bits"] = pack((self.places >= 0).cpu().numpy(), 1)
        for codes in (self.coded, self.trellis, self.levels):
            out |= codes.arrays() if codes is not None else {}
        return out

    @torch.no_grad()
    def _load(self, data: TableData) -> None:
        """Take every value from a snapshot's arrays."""
        spec, arrays = self.spec, data.arrays
        if spec.shared is not None:
            assert self.pool is not None
            self.scale.copy_(torch.tensor(arrays["shared.scale"][0]) / self.pool.multiplier(torch.ones(())))
            if self.pool.spec is not None and self.pool.spec.reconstruction.value != "sum":
                self.scale.copy_(torch.tensor(arrays["shared.scale"][0]))
        for part in ("private", "exact", "map"):
            if (facts := getattr(spec, part)) is not None:
                if part == "map" and facts.bands:
                    self.map = BandedMap(facts.bands, spec.embedding_dim, arrays["map.values"], arrays["map.scale"])
                    continue
                count = {"private": getattr(facts, "dim", 0), "exact": spec.latent_dim, "map": spec.embedding_dim}[part]
                setattr(self, part, loaded_values(arrays, part, facts.bits, count))
        if spec.exact is not None:
            self.exact_ids.copy_(torch.from_numpy(arrays["exact.ids"].astype(np.int64)))
        if spec.map is not None and self.map_bias is not None:
            self.map_bias.copy_(torch.tensor(arrays["map.bias"]))


def _has_others(spec: TableSpec) -> bool:
    return any(part is not None for part in (spec.shared, spec.private))


def _placed(part: Tensor, start: int, width: int) -> Tensor:
    """A part's entries at their place in the latent row, zeros around."""
    end = start + part.shape[1]
    return part if (start, end) == (0, width) else nn.functional.pad(part, (start, width - end))
