"""The three data sets, each with the split that is stored beside it.

``Size.SAMPLE`` reads the small sample files, ``Size.PART`` a fixed draw of households or users (what most rows of the tables
are made on, since a run must fit into a minute or two), ``Size.WHOLE`` everything. Ids are renumbered to those that occur.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))
import completejourney
from completejourney import CONTEXT, FIELDS

__all__ = ["DATA", "Clicks", "Labelled", "Pairs", "Sequences", "Size", "load_clicks", "load_pairs", "load_sequences"]

DATA = completejourney.DATA.parent
HOUSEHOLDS, USERS = 150, 20_000
"""How many of them ``Size.PART`` draws, the households of completejourney and the users of amazon_book."""
CORE = 5
"""In ``Size.PART`` every user and item of the other two sets occurs so often: a draw of users alone leaves most items one or two."""

Ints = npt.NDArray[np.int64]


class Size(enum.StrEnum):
    """How much of a data set is read."""

    SAMPLE = "sample"
    PART = "part"
    WHOLE = "whole"


@dataclass(frozen=True)
class Labelled:
    """``ids`` (rows, fields), ``labels`` (rows,) float32, ``trips`` (rows,): which shopping trip of which household."""

    ids: Ints
    labels: npt.NDArray[np.float32]
    trips: Ints


@dataclass(frozen=True)
class Clicks:
    """completejourney: labelled rows of 21 ids; "train", "valid" and "test" by weeks."""

    fields: tuple[str, ...]
    sizes: Mapping[str, int]
    splits: Mapping[str, Labelled]
    counts: Mapping[str, Ints]


@dataclass(frozen=True)
class Pairs:
    """amazon_book: (user, item) pairs (n, 2) by split."""

    sizes: Mapping[str, int]
    splits: Mapping[str, Ints]
    counts: Mapping[str, Ints]


@dataclass(frozen=True)
class Sequences:
    """beauty: user u's items in order of time are ``items[offsets[u] : offsets[u + 1]]``, from 1 on; 0 is padding.

    The last item of a user is the test's, the one before it the validation's.
    """

    sizes: Mapping[str, int]
    items: Ints
    offsets: Ints
    counts: Mapping[str, Ints]


def load_clicks(size: Size, folder: Path = DATA) -> Clicks:
    """completejourney, or all rows of some of its households."""
    whole, _ = completejourney.load(folder / "completejourney", sample=size is Size.SAMPLE)
    names = list(whole)
    ids = np.concatenate([whole[name].ids for name in names])
    labels = np.concatenate([whole[name].labels for name in names])
    part = np.repeat(np.arange(len(names)), [len(whole[name].ids) for name in names])
    if size is Size.PART:
        households = np.unique(ids[:, FIELDS.index("hh")])
        chosen = np.random.default_rng(0).choice(households[1:], HOUSEHOLDS, replace=False)
        mine = np.isin(ids[:, FIELDS.index("hh")], chosen)
        ids, labels, part = ids[mine], labels[mine], part[mine]
    trips = np.unique(ids[:, [FIELDS.index(field) for field in CONTEXT]], axis=0, return_inverse=True)[1].reshape(-1)
    ids = np.stack([np.unique(column, return_inverse=True)[1] for column in ids.T], axis=1)
    sizes = {field: int(column.max()) + 1 for field, column in zip(FIELDS, ids.T, strict=True)}
    splits = {
        name: Labelled(ids[part == n], labels[part == n].astype(np.float32), trips[part == n])
        for n, name in enumerate(names)
    }
    counts = {
        field: np.bincount(column, minlength=sizes[field])
        for field, column in zip(FIELDS, splits["train"].ids.T, strict=True)
    }
    return Clicks(FIELDS, sizes, splits, counts)


def load_pairs(size: Size, folder: Path = DATA) -> Pairs:
    """amazon_book, or the pairs that some of its users have in training, as far as both are in many: the CORE of the draw."""
    path = folder / "amazon_book" / ("sample.npz" if size is Size.SAMPLE else "interactions.npz")
    with np.load(_present(path)) as stored:
        user, item, part = (stored[name].astype(np.int64) for name in ("user", "item", "split"))
    if size is Size.PART:
        mine = np.isin(user, np.random.default_rng(0).choice(int(user.max()) + 1, USERS, replace=False))
        user, item, part = user[mine], item[mine], part[mine]
        mine = _core(user, item, part == 0)
        user, item, part = user[mine], item[mine], part[mine]
    user, item = (np.unique(column, return_inverse=True)[1] for column in (user, item))
    sizes = {"user": int(user.max()) + 1, "item": int(item.max()) + 1}
    pairs = np.stack((user, item), axis=1)
    splits = {name: pairs[part == number] for number, name in enumerate(("train", "valid", "test"))}
    counts = {name: np.bincount(splits["train"][:, column], minlength=sizes[name]) for column, name in enumerate(sizes)}
    return Pairs(sizes, splits, counts)


def load_sequences(size: Size, folder: Path = DATA) -> Sequences:
    """beauty, or its CORE: 22,363 users and 12,101 items, the set that most papers use."""
    path = folder / "beauty" / ("sample.npz" if size is Size.SAMPLE else "sequences.npz")
    with np.load(_present(path)) as stored:
        items, offsets = stored["items"].astype(np.int64), stored["offsets"].astype(np.int64)
    if size is Size.PART:
        owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        mine = _core(owner, items, np.ones(len(items), dtype=bool))
        items, lengths = items[mine], np.bincount(owner[mine])
        offsets = np.concatenate(([0], np.cumsum(lengths[lengths > 0])))
    items = np.unique(items, return_inverse=True)[1] + 1
    n = int(items.max()) + 1
    learnt = np.ones(len(items), dtype=bool)
    learnt[offsets[1:] - 1] = learnt[offsets[1:] - 2] = False
    return Sequences({"item": n}, items, offsets, {"item": np.bincount(items[learnt], minlength=n)})


def _core(user: Ints, item: Ints, counted: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which events are left when users and items of fewer than CORE counted events go, until none has fewer."""
    mine = np.ones(len(user), dtype=bool)
    while True:
        often = [np.bincount(ids[mine & counted], minlength=int(ids.max()) + 1) >= CORE for ids in (user, item)]
        left = mine & often[0][user] & often[1][item]
        if left.sum() == mine.sum():
            return mine
        mine = left


def _present(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing; give --data FOLDER, one that has amazon_book, beauty and completejourney"
        )
    return path
