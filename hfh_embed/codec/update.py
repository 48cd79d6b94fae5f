"""`update`: new or changed rows into a snapshot with the fit that it has, and whether that fit still suits them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hfh_embed.codec.choice import ZERO_BITS
from hfh_embed.codec.compress import cores
from hfh_embed.codec.stored import StoredFit, put_bits
from hfh_embed.codec.survey import BLOCK_ROWS
from hfh_embed.dense import DenseRows
from hfh_embed.errors import InputError
from hfh_embed.layout import Array, SnapshotSpec, table_arrays
from hfh_embed.lookup import Table
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import ExactSpec, TableSpec
from hfh_embed.vocabulary import Vocabulary

__all__ = ["Update", "update"]

Ids = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Progress = Callable[[int, int, str], None]

WORST = 5
LARGER, DEVIATIONS = 0.25, 2.0
"""A fit no longer suits rows whose relative error is larger than its own by this share; of few rows, whose errors differ by
chance, by this many over the root of their number."""

ROUNDING = 1e-4
"""An error that no fit is too bad for: the one noted in the snapshot has four digits."""


@dataclass(frozen=True)
class Update:
    """A new snapshot, and what became of the rows that went into it.

    ``relative_error`` is the squared error of the given rows over their squares, both summed, ``own_error`` the same of the rows
    that the fit was made for, None where the snapshot does not tell. ``suits`` compares them, None without ``own_error``.
    """

    snapshot: Snapshot
    table: str
    changed: int
    added: int
    relative_error: float
    own_error: float | None
    mean_cosine: float
    worst_ids: tuple[int, ...]
    suits: bool | None

    def to_dict(self) -> dict[str, object]:
        """Plain values without the snapshot, for JSON."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "snapshot"}

    def to_text(self) -> str:
        """The figures, a line each, and what follows from them."""
        lines = [
            f"changed rows    {self.changed:,}",
            f"added rows      {self.added:,}",
            f"relative error  {self.relative_error:.4f}"
            + (f"  (the fit's own: {self.own_error:.4f})" if self.own_error is not None else ""),
            f"mean cosine     {self.mean_cosine:.4f}",
            f"worst rows      {', '.join(map(str, self.worst_ids))}",
        ]
        match self.suits:
            case None:
                lines.append(
                    "The snapshot does not tell the error of its own rows, so there is nothing to compare with."
                )
            case True:
                lines.append("The fit suits these rows.")
            case False:
                lines.append("The fit no longer suits these rows: compress the whole table again.")
        return "\n".join(lines)


def update(
    snapshot: Snapshot,
    rows: DenseRows,
    ids: npt.ArrayLike | None = None,
    *,
    keys: Sequence[str] | None = None,
    table: str | None = None,
    progress: Progress | None = None,
) -> Update:
    """Encode rows with the fit of a table and put them in the place of the old ones. The given snapshot stays as it is.

    Args:
        snapshot: with a table that `compress` made, or one of few-bit rows.
        rows: (n, D) finite floats; may be a memory map larger than memory.
        ids: (n,) distinct ids. Those from N on are added and must follow without a gap. Without ids and keys, the rows are
            the whole table, N or more of them.
        keys: (n,) instead of ids: keys of the vocabulary are changed, other keys are added with the next ids. With ids, the
            keys of the added ids alone, in the order of their ids, which a table with a vocabulary needs.
        table: which one, where there are several.
        progress: told (done, total, what).

    Raises:
        InputError: rows, ids or keys that do not fit, or a table whose rows cannot be encoded alone.
        TableNotFoundError: no such table.
    """
    tell = progress or (lambda done, total, what: None)
    old = _table(snapshot, table)
    fit = StoredFit(old.data, cores())
    dim = old.embedding_dim
    if len(rows.shape) != 2 or not rows.shape[0] or rows.dtype.kind != "f":
        raise InputError(f"rows are {rows.dtype} of shape {rows.shape}; give floats of shape (rows, {dim})")
    if rows.shape[1] != dim:
        raise InputError(f"rows have {rows.shape[1]} entries; those of table {old.name!r} have {dim}")
    given = rows.shape[0]
    wanted, new_keys = _ids(old, given, ids, keys)
    count = max(old.num_embeddings, int(wanted.max()) + 1)
    spec = old.spec.replace(num_embeddings=count)
    arrays = _grown(old, spec)
    spec = _without_filled(spec, arrays, rows, wanted)
    for start in range(0, given, BLOCK_ROWS):
        block, own = _block(rows, start, old, wanted), wanted[start : start + BLOCK_ROWS]
        _store(fit, spec, arrays, own, block)
        tell(min(start + BLOCK_ROWS, given), given, "encode")
    made = _snapshot(snapshot, spec, arrays, new_keys)
    return _measured(made, spec.name, rows, wanted, old.num_embeddings, _own_error(snapshot), tell)


def _table(snapshot: Snapshot, name: str | None) -> Table:
    if name is None and len(snapshot) > 1:
        raise InputError(f"the snapshot has {len(snapshot)} tables; name one of {', '.join(list(snapshot)[:20])}")
    return snapshot[name if name is not None else next(iter(snapshot))]


def _ids(table: Table, count: int, ids: npt.ArrayLike | None, keys: Sequence[str] | None) -> tuple[Ids, list[str]]:
    """The id of each row, and the keys of the ids that are added."""
    n, vocabulary = table.num_embeddings, table.vocabulary
    if keys is not None and vocabulary is None:
        raise InputError(f"table {table.name!r} has no vocabulary; give ids instead of keys")
    new_keys = list(keys or ())
    if ids is None and keys is not None:
        assert vocabulary is not None
        if len(new_keys) != count:
            raise InputError(f"{len(new_keys):,} keys for {count:,} rows; give one key a row")
        wanted = vocabulary.find(new_keys)
        new = wanted < 0
        wanted[new] = n + np.arange(new.sum())
        new_keys = [key for key, is_new in zip(new_keys, new, strict=True) if is_new]
    elif ids is None:
        if count < n:
            raise InputError(f"{count:,} rows for a table of {n:,} ids; give the id of each row, or the whole table")
        wanted = np.arange(count, dtype=np.int64)
    else:
        given = np.asarray(ids)
        if given.shape != (count,) or given.dtype.kind not in "iu":
            raise InputError(
                f"ids are {given.dtype} of shape {given.shape}; give one integer for each of {count:,} rows"
            )
        wanted = given.astype(np.int64)
    _check_ids(table, wanted)
    added = int((wanted >= n).sum())
    if vocabulary is not None and len(new_keys) != added:
        raise InputError(
            f"{added:,} ids are added and {len(new_keys):,} keys given for them; "
            f"table {table.name!r} has a vocabulary, so give the key of each added id"
        )
    return wanted, new_keys


def _check_ids(table: Table, ids: Ids) -> None:
    n = table.num_embeddings
    ordered = np.sort(ids)
    if ordered[0] < 0:
        raise InputError(f"id {ordered[0]} is negative; ids are integers from 0 on")
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise InputError(f"id {twice[0]} appears twice; give each id one row")
    added = ordered[ordered >= n]
    if len(added) and added[-1] != n + len(added) - 1:
        gap = int(n + np.flatnonzero(added != n + np.arange(len(added)))[0])
        raise InputError(
            f"ids up to {added[-1]} are added to a table of {n:,}, but none is {gap}; added ids must follow without a gap"
        )


def _block(rows: DenseRows, start: int, table: Table, ids: Ids) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        block = np.asarray(rows[start : start + BLOCK_ROWS], dtype=np.float32)
    wrong = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(wrong):
        raise InputError(
            f"the rows of ids {', '.join(str(ids[start + number]) for number in wrong[:5])} hold NaN or infinite values; mend them"
        )
    if table.spec.padding_id is not None:
        padding = np.flatnonzero(ids[start : start + BLOCK_ROWS] == table.spec.padding_id)
        if block[padding].any():
            raise InputError(f"id {table.spec.padding_id} is the padding id, whose row is always zero; leave it out")
    return block


def _grown(old: Table, spec: TableSpec) -> dict[str, Array]:
    """The table's arrays, copied, with room for the added ids."""
    arrays: dict[str, Array] = {}
    for name, wanted in table_arrays(spec).items():
        array = old.data.arrays[name]
        if array.shape == wanted.shape:
            arrays[name] = array.astype(wanted.dtype)  # ids of exact rows widen in tables beyond 2**32 ids
        else:
            arrays[name] = np.zeros(wanted.shape, dtype=wanted.dtype)
            arrays[name][: len(array)] = array
    return arrays


def _without_filled(spec: TableSpec, arrays: dict[str, Array], rows: DenseRows, ids: Ids) -> TableSpec:
    """The table without exact rows for ids that were rows of zeros and now get others, which their codes describe better."""
    if spec.exact is None or spec.exact.bits != ZERO_BITS:
        return spec
    mine = np.flatnonzero(np.isin(ids, arrays["exact.ids"]))
    filled = [int(ids[place]) for place in mine if np.asarray(rows[place : place + 1]).any()]
    kept = ~np.isin(arrays["exact.ids"], filled)
    for name in ("exact.ids", "exact.values", "exact.scale"):
        arrays[name] = arrays[name][kept]
    if not kept.any():
        for name in ("exact.ids", "exact.values", "exact.scale"):
            del arrays[name]
    count = int(kept.sum())
    return spec.replace(exact=ExactSpec(count, ZERO_BITS) if count else None)


def _store(fit: StoredFit, spec: TableSpec, arrays: dict[str, Array], ids: Ids, rows: npt.NDArray[np.float32]) -> None:
    encoded, _ = fit.encode(rows)
    if spec.trellis is not None:
        put_bits(arrays["trellis.codes"], ids, encoded.pop("trellis.codes"))
    for name, array in encoded.items():
        arrays[name][ids] = array
    if spec.exact is not None:
        places = np.searchsorted(arrays["exact.ids"], ids)
        mine = np.flatnonzero(arrays["exact.ids"][np.minimum(places, spec.exact.count - 1)] == ids)
        if len(mine):
            values, scale, _ = fit.exact(rows[mine], spec.exact.bits)
            arrays["exact.values"][places[mine]] = values
            if spec.exact.bits <= 8:
                arrays["exact.scale"][places[mine]] = scale


def _snapshot(old: Snapshot, table: TableSpec, arrays: dict[str, Array], new_keys: list[str]) -> Snapshot:
    spec = SnapshotSpec(tuple(table if t.name == table.name else t for t in old.spec.tables), old.spec.pools)
    vocabularies = dict(old.vocabularies)
    if new_keys:
        known = vocabularies[table.name]
        vocabularies[table.name] = Vocabulary.from_keys([*(known.key(id_) for id_ in range(len(known))), *new_keys])
    merged = dict(old.arrays) | {f"table/{table.name}/{name}": array for name, array in arrays.items()}
    return Snapshot(spec, merged, vocabularies=vocabularies, metadata=old.metadata)


def _own_error(snapshot: Snapshot) -> float | None:
    """The relative error that `compress` wrote down, if it made the only table."""
    text = snapshot.metadata.get("unweighted error", snapshot.metadata.get("relative error"))
    try:
        return float(text) if text is not None and len(snapshot) == 1 else None
    except ValueError:
        return None


def _measured(
    made: Snapshot, name: str, rows: DenseRows, ids: Ids, before: int, own: float | None, tell: Progress
) -> Update:
    """Look the rows up again and compare them with what was given."""
    error, energy, cosine = np.empty(len(ids)), np.empty(len(ids)), np.empty(len(ids))
    table = made[name]
    for start in range(0, len(ids), BLOCK_ROWS):
        part = slice(start, min(start + BLOCK_ROWS, len(ids)))
        true = np.asarray(rows[part], dtype=np.float64)
        found = table.lookup(ids[part], num_threads=cores()).astype(np.float64)
        error[part] = ((true - found) ** 2).sum(axis=1)
        energy[part] = (true**2).sum(axis=1)
        lengths = np.sqrt(energy[part] * (found**2).sum(axis=1))
        same = (error[part] == 0).astype(np.float64)
        cosine[part] = np.divide((true * found).sum(axis=1), lengths, out=same, where=lengths > 0)
        tell(part.stop, len(ids), "compare rows")
    whole = float(energy.sum())
    relative = float(error.sum()) / whole if whole else 0.0
    added = int((ids >= before).sum())
    allowed = 1 + max(LARGER, DEVIATIONS / len(ids) ** 0.5)
    suits = None if own is None else relative <= max(allowed * own, ROUNDING)
    made.metadata["updated"] = f"{len(ids) - added:,} rows changed, {added:,} added; relative error {relative:.4f}"
    order = np.argsort(cosine, kind="stable")[:WORST]
    return Update(
        made,
        name,
        len(ids) - added,
        added,
        relative,
        own,
        float(cosine.mean()),
        tuple(int(id_) for id_ in ids[order]),
        suits,
    )
