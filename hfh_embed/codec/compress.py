"""`compress`: fit on a sample, choose, encode block by block, and put the arrays of a snapshot together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.codec.choice import EXACT_BITS, choose, smallest
from hfh_embed.codec.coded import Sample
from hfh_embed.codec.forms import Fit
from hfh_embed.codec.transform import half_steps
from hfh_embed.errors import InputError, RatioError
from hfh_embed.layout import Array, SnapshotSpec
from hfh_embed.packing import levels_from_codes, pack, round_to_codes
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import PrivateSpec, TableSpec, Unknown
from hfh_embed.vocabulary import Vocabulary

__all__ = ["compress"]

Progress = Callable[[int, int, str], None]
Rows = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

SAMPLE_ROWS = 65_536
BLOCK_ROWS = 16_384


def compress(
    rows: Rows,
    *,
    ratio: float,
    name: str = "table",
    frequencies: npt.NDArray[np.number] | None = None,
    vocabulary: Vocabulary | Sequence[str] | None = None,
    padding_id: int | None = None,
    unknown: Unknown | str = Unknown.ERROR,
    seed: int = 0,
    progress: Progress | None = None,
) -> Snapshot:
    """Compress a trained table into a snapshot in memory; ``.save(path)`` writes it.

    Args:
        rows: (N, D) floats, finite; may be a memory map larger than memory.
        ratio: N * D * 4 / stored bytes, >= 1; met to the byte.
        name: the table's name.
        frequencies: (N,) how often each id is used; errors of frequent ids then weigh more, and some may get exact rows.
        vocabulary: the key of each id.
        padding_id: an id whose row is zero.
        unknown: what ids outside the table get, "zero" or "error".
        seed: of the sample and the k-means.
        progress: told (done, total, what).

    Raises:
        RatioError: too few bytes; its ``nearest`` ratio can be met.
        InputError: rows that are not a finite (N, D) array, or frequencies that do not fit.
    """
    tell = progress or (lambda done, total, what: None)
    rows = _checked(rows, tell)
    if not (isinstance(ratio, int | float) and np.isfinite(ratio) and ratio >= 1):
        raise RatioError(f"ratio is {ratio!r}; give a number from 1 on (20 means twenty times smaller)", nearest=1.0)
    table = _blank(name, rows, padding_id, unknown)
    budget = int(table.dense_nbytes / ratio)
    weights = _weights(frequencies, len(rows))
    ids, sample = _sampled(rows, weights, seed)
    ranks = np.empty(0, dtype=np.int64)
    if frequencies is not None:
        ranks = np.argsort(np.argsort(-np.asarray(frequencies, dtype=np.float64), kind="stable"))[ids]
    choice = choose(table, budget, sample, ranks, threads=_cores(), seed=seed, tell=tell)
    if choice is None:
        nearest = max(np.floor(table.dense_nbytes / smallest(table, sample, seed) * 1e4) / 1e4, 1.0)
        raise RatioError(
            f"ratio {ratio:g} allows {budget:,} bytes for table {name!r}, too few for any form; "
            f"the nearest ratio that can be met is {nearest:g}",
            nearest=nearest,
        )
    fit = choice.fit
    arrays, error = _encode(fit, rows, weights, frequencies, tell)
    spec = SnapshotSpec((fit.table,))
    return Snapshot(
        spec,
        {f"table/{name}/{key}": array for key, array in arrays.items()},
        vocabularies={name: vocabulary} if vocabulary is not None else None,
        metadata={"method": _describe(fit.table), "relative error": f"{error:.4f}"},
    )


def _blank(name: str, rows: Rows, padding_id: int | None, unknown: Unknown | str) -> TableSpec:
    """A table of the right sizes; its part is replaced by the fit's."""
    n, dim = rows.shape
    part = PrivateSpec(dim, 32)
    return TableSpec(name, n, dim, private=part, padding_id=padding_id, unknown=Unknown(unknown))


def _checked(rows: Rows, tell: Progress) -> Rows:
    if not isinstance(rows, np.ndarray) or rows.dtype.kind != "f":
        given = f"{rows.dtype} array" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise InputError(f"rows are a {given}; give a float array of shape (ids, entries)")
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"rows have shape {rows.shape}; give (ids, entries), both at least 1")
    for start in range(0, len(rows), BLOCK_ROWS):
        block = _block(rows, slice(start, start + BLOCK_ROWS))
        wrong = ~np.isfinite(block).all(axis=1)
        if wrong.any():
            listed = ", ".join(str(start + number) for number in np.flatnonzero(wrong)[:5])
            raise InputError(
                f"rows {listed}{' and more' if wrong.sum() > 5 else ''} hold NaN or infinite values; remove or mend them"
            )
        tell(min(start + BLOCK_ROWS, len(rows)), len(rows), "check")
    return rows


def _block(rows: Rows, which: slice | npt.NDArray[np.int64]) -> F32:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is refused as such
        return np.asarray(rows[which], dtype=np.float32)


def _weights(frequencies: npt.NDArray[np.number] | None, count: int) -> F64:
    """Weights of mean 1. Ids that were never seen keep a little, so that their rows are not forgotten."""
    if frequencies is None:
        return np.ones(count)
    given = np.asarray(frequencies, dtype=np.float64)
    if given.shape != (count,) or not np.isfinite(given).all() or given.min() < 0 or not given.any():
        raise InputError(
            f"frequencies have shape {given.shape}; give one finite number >= 0 for each of the {count:,} ids, not all zero"
        )
    floored: F64 = given / given.mean() + 0.01
    return floored / floored.mean()


def _sampled(rows: Rows, weights: F64, seed: int) -> tuple[npt.NDArray[np.int64], Sample]:
    """The ids of a sample in random order, and their rows."""
    generator = np.random.default_rng(seed)
    picked = np.arange(len(rows))
    if len(rows) > SAMPLE_ROWS:
        picked = np.sort(generator.choice(len(rows), SAMPLE_ROWS, replace=False))
    sample, own = _block(rows, picked), weights[picked]
    order = generator.permutation(len(picked))
    return picked[order], Sample(np.ascontiguousarray(sample[order]), own[order])


def _most_frequent(frequencies: npt.NDArray[np.number], count: int) -> npt.NDArray[np.int64]:
    return np.sort(np.argsort(-np.asarray(frequencies, dtype=np.float64), kind="stable")[:count]).astype(np.int64)


def _encode(
    fit: Fit, rows: Rows, weights: F64, frequencies: npt.NDArray[np.number] | None, tell: Progress
) -> tuple[dict[str, Array], float]:
    """All stored arrays of the table, and the weighted relative error of what they stand for."""
    table = fit.table
    blocks: dict[str, list[Array]] = {}
    lost = total = 0.0
    exact_ids = np.empty(0, dtype=np.int64)
    if table.exact is not None and frequencies is not None:
        exact_ids = _most_frequent(frequencies, table.exact.count)
    exact_values, exact_scales = [], []
    for start in range(0, len(rows), BLOCK_ROWS):
        block, own = _block(rows, slice(start, start + BLOCK_ROWS)), weights[start : start + BLOCK_ROWS]
        arrays, decoded = fit.encode(block)
        if "trellis.codes" in arrays:  # whole bytes, as a block has a multiple of eight rows
            arrays["trellis.codes"] = np.packbits(arrays["trellis.codes"].reshape(-1), bitorder="little")
        for key, array in arrays.items():
            blocks.setdefault(key, []).append(array)
        hot = exact_ids[(exact_ids >= start) & (exact_ids < start + len(block))] - start
        if len(hot):
            latent = fit.latent(block[hot])
            scale = half_steps(latent, EXACT_BITS).astype(np.float16)
            codes = round_to_codes(latent, scale.astype(np.float64)[:, None], EXACT_BITS)
            exact_values.append(pack(codes, EXACT_BITS))
            exact_scales.append(scale)
            decoded[hot] = fit.dense(levels_from_codes(codes, EXACT_BITS) * scale.astype(np.float32)[:, None])
        lost += float((own * ((block - decoded).astype(np.float64) ** 2).sum(axis=1)).sum())
        total += float((own * (block.astype(np.float64) ** 2).sum(axis=1)).sum())
        tell(min(start + BLOCK_ROWS, len(rows)), len(rows), "encode")
    stored = {key: np.concatenate(parts) for key, parts in blocks.items()} | fit.shared_arrays()
    if len(exact_ids):
        dtype = np.dtype("<u4") if table.num_embeddings <= 2**32 else np.dtype("<i8")
        stored |= {
            "exact.ids": exact_ids.astype(dtype),
            "exact.values": np.concatenate(exact_values),
            "exact.scale": np.concatenate(exact_scales),
        }
    return stored, lost / total if total else 0.0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _describe(table: TableSpec) -> str:
    """The form in words, for people who inspect the file."""
    if (trellis := table.trellis) is not None:
        text = f"{trellis.ring_bits} bits a row along {trellis.entries} principal axes by a trellis of {1 << trellis.state_bits:,} states"
        if table.coded is not None:
            text = f"{len(table.coded.chunks)} codes of the whole row, then {text}"
        if trellis.norm_bits:
            text += f", {trellis.norm_bits} bits for its length"
    else:
        assert table.private is not None
        text = f"rows of {table.private.bits} bits an entry"
        text += ", a scale a row" if table.private.row_scale else ""
    return text + (f", {table.exact.count:,} exact rows" if table.exact is not None else "")
