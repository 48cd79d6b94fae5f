"""Specs as JSON and back: what a snapshot's header says about its pools and tables. Unknown fields are refused."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, TypeVar

from hfh_embed.errors import HFHError, SnapshotError
from hfh_embed.layout import SnapshotSpec
from hfh_embed.spec import (
    CodeChunk,
    CodedSpec,
    ExactSpec,
    KeptSpec,
    Level,
    LevelsSpec,
    MapBand,
    MapSpec,
    PoolSpec,
    PrivateSpec,
    ResidualSpec,
    SharedSpec,
    StepRun,
    TableSpec,
    TrellisSpec,
)

__all__ = ["spec_from_json", "spec_to_json"]

T = TypeVar("T")

LISTS = {"chunks": CodeChunk, "runs": StepRun, "bands": MapBand, "each": Level}
"""Fields that are tuples of small parts, each a list of its fields in the file."""

HEX_FIELDS = {"seed", "key"}  # 64-bit integers, which JSON readers of other languages would round
PARTS = {
    "shared": SharedSpec,
    "private": PrivateSpec,
    "coded": CodedSpec,
    "trellis": TrellisSpec,
    "exact": ExactSpec,
    "levels": LevelsSpec,
    "map": MapSpec,
    "residual": ResidualSpec,
    "kept": KeptSpec,
}


def spec_to_json(spec: SnapshotSpec) -> dict[str, Any]:
    """A spec as plain JSON values; parts that a table lacks are left out."""
    return {"pools": [_plain(pool) for pool in spec.pools], "tables": [_plain(table) for table in spec.tables]}


def _plain(part: Any) -> dict[str, Any]:
    fields = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if value is None or (field.name in LISTS and not value):
            continue
        if dataclasses.is_dataclass(value):
            value = _plain(value)
        elif isinstance(value, enum.Enum):
            value = value.value
        elif field.name in LISTS:
            value = [list(dataclasses.astuple(item)) for item in value]
        elif field.name in HEX_FIELDS:
            value = f"{value:016x}"
        fields[field.name] = value
    return fields


def spec_from_json(document: Any) -> SnapshotSpec:
    """The spec that JSON values describe; SnapshotError says what is impossible about them."""
    try:
        pools = tuple(_build(PoolSpec, item) for item in _list(document["pools"]))
        tables = tuple(_table(item) for item in _list(document["tables"]))
        return SnapshotSpec(tables, pools)
    except HFHError as error:
        raise SnapshotError(f"the snapshot describes something impossible: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SnapshotError(f"the snapshot's description is malformed ({type(error).__name__}: {error})") from None


def _table(item: Any) -> TableSpec:
    fields = dict(item)
    for name, kind in PARTS.items():
        if name in fields:
            fields[name] = _build(kind, fields[name])
    return _build(TableSpec, fields)


def _build(kind: type[T], item: Any) -> T:
    fields = dict(item)
    for name in HEX_FIELDS & fields.keys():
        if not isinstance(fields[name], str) or len(fields[name]) != 16:
            raise ValueError(f"{name} is not 16 hexadecimal digits")
        fields[name] = int(fields[name], 16)
    for name in LISTS.keys() & fields.keys():
        fields[name] = tuple(LISTS[name](*_list(part)) for part in _list(fields[name]))
    for name in ("row_scale", "bias", "signs", "constant", "adds"):
        if name in fields and not isinstance(fields[name], bool):
            raise ValueError(f"{name} is not true or false")
    return kind(**fields)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("a list is missing")
    return value
