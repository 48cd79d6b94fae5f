"""Exact rows in levels, in torch: trainable rows and maps, and the levels' ids."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfh_embed.layout import Array, TableData
from hfh_embed.level_index import LevelPlaces, index_arrays
from hfh_embed.nn.rounding import Scaling, StoredValues, loaded_values, rounded_rms
from hfh_embed.nn.tape import Tape
from hfh_embed.spec import LevelIndex, TableSpec

__all__ = ["Levels"]


class Levels(nn.Module):
    """The levels of one table.

    Args:
        spec: the table.
        members: the ids of each level, ascending; None for the table's first ids, until a state is loaded.
        std: standard deviation of initial rows.
        loaded: take everything from here instead.
    """

    ends: Tensor
    places: Tensor | None

    def __init__(
        self, spec: TableSpec, members: Sequence[np.ndarray[Any, Any]] | None, std: float, loaded: TableData | None
    ) -> None:
        super().__init__()
        assert spec.levels is not None
        self.spec, self.levels = spec, spec.levels
        counts = torch.tensor([level.count for level in self.levels.each])
        self.register_buffer("ends", counts.cumsum(0), persistent=False)
        places = None
        if self.levels.index is not LevelIndex.FIRST:
            places = torch.full((spec.num_embeddings,), -1, dtype=torch.int32)
            if loaded is not None:
                _read_places(places, LevelPlaces(spec, loaded.arrays))
            elif members is None:
                places[: self.levels.count] = torch.arange(self.levels.count, dtype=torch.int32)
            else:
                places[torch.from_numpy(np.concatenate(members))] = torch.arange(self.levels.count, dtype=torch.int32)
        self.register_buffer("places", places)
        self.values, self.maps = nn.ModuleList(), nn.ModuleList()
        for number, level in enumerate(self.levels.each):
            name, has_map = f"level{number}", level.dim < spec.latent_dim
            if loaded is not None:
                self.values.append(loaded_values(loaded.arrays, name, level.bits, level.dim))
                linear = (
                    loaded_values(loaded.arrays, f"{name}.map", level.map_bits, spec.latent_dim) if has_map else None
                )
            else:
                drawn = torch.randn(level.count, level.dim) * (std / rounded_rms(level.bits))
                self.values.append(StoredValues(drawn, level.bits, Scaling.TABLE))
                matrix = torch.randn(level.dim, spec.latent_dim) / math.sqrt(level.dim)
                linear = StoredValues(matrix, level.map_bits, Scaling.ROW) if has_map else None
            self.maps.append(linear if linear is not None else nn.Identity())

    def find(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The level of each id (B,), their number for none, and its place there (B,)."""
        at = ids if self.places is None else self.places[ids].long()
        total = self.levels.count
        at = torch.where((at < 0) | (at >= total), total, at)
        level = torch.bucketize(at, self.ends, right=True)
        begin = nn.functional.pad(self.ends, (1, 0))
        return level, at - begin[level]

    def forward(self, ids: Tensor, others: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Latent rows of ids (B,), (B, R). ``others`` gives what other parts make of some ids."""
        level, place = self.find(ids)
        none = len(self.levels.each)
        low, high = (int(bound) for bound in level.aminmax()) if len(level) else (none, none)
        if low == high and not self._wants_all():
            z = self._level(low, place) if low < none else self._rest(ids, others)
        else:
            z = self._mixed(ids, level, place, others)
        return others(ids) + z if self.levels.adds and others is not None else z

    def _wants_all(self) -> bool:
        """Whether levels without an id in the batch take part too: autograd then gives every parameter a gradient."""
        return torch.is_grad_enabled() and Tape.current() is None

    def _mixed(self, ids: Tensor, level: Tensor, place: Tensor, others: Callable[[Tensor], Tensor] | None) -> Tensor:
        rows, where = [], []
        for number in range(len(self.levels.each) + 1):
            mine = torch.nonzero(level == number).squeeze(1)
            if number == len(self.levels.each):
                if self.levels.count < self.spec.num_embeddings:
                    rows.append(self._rest(ids[mine], others))
                    where.append(mine)
            elif len(mine) or self._wants_all():
                rows.append(self._level(number, place[mine]))
                where.append(mine)
        back = torch.empty_like(ids)
        back[torch.cat(where)] = torch.arange(len(ids), device=ids.device)
        return torch.cat([part.to(rows[0].dtype) for part in rows]).index_select(0, back)

    def _level(self, number: int, places: Tensor) -> Tensor:
        values: Tensor = self.values[number](places)
        linear = self.maps[number]
        return values @ linear() if isinstance(linear, StoredValues) else values

    def _rest(self, ids: Tensor, others: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Rows of ids in no level; zeros where there will be something to add them to."""
        if others is not None and not self.levels.adds:
            return others(ids)
        return self.ends.new_zeros(len(ids), self.spec.latent_dim, dtype=torch.float32)

    @torch.no_grad()
    def arrays(self) -> dict[str, Array]:
        """The stored arrays, by the names of :func:`hfh_embed.layout.table_arrays`."""
        out: dict[str, Array] = {}
        if self.places is not None:
            places = self.places.cpu().numpy()
            ids = np.flatnonzero(places >= 0)
            ids = ids[np.argsort(places[ids], kind="stable")]
            out |= index_arrays(self.spec, np.split(ids, self.ends.cpu().numpy()[:-1]))
        for number, (values, linear) in enumerate(zip(self.values, self.maps, strict=True)):
            for name, part in ((f"level{number}", values), (f"level{number}.map", linear)):
                if isinstance(part, StoredValues):
                    out[f"{name}.values"], scales = part.export()
                    if scales is not None:
                        out[f"{name}.scale"] = scales
        return out


def _read_places(places: Tensor, index: LevelPlaces) -> None:
    for start in range(0, len(places), 2**16):
        ids = np.arange(start, min(start + 2**16, len(places)))
        level, place = index.find(ids)
        places[start : start + len(ids)] = torch.from_numpy(np.where(level < 0, -1, index.bounds[level] + place))
