"""`compress`: fit on a sample, choose, encode block by block, and put the arrays of a snapshot together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from hfh_embed import fidelity
from hfh_embed.codec.choice import EXACT_BITS, TRIAL_ROWS, Choice, Metric, choose, smallest
from hfh_embed.codec.coded import Sample
from hfh_embed.codec.forms import Fit
from hfh_embed.codec.transform import half_steps
from hfh_embed.errors import InputError, RatioError
from hfh_embed.layout import Array, SnapshotSpec
from hfh_embed.packing import levels_from_codes, pack, round_to_codes
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import PrivateSpec, TableSpec, Unknown
from hfh_embed.vocabulary import Vocabulary

__all__ = ["compress", "cores"]

Progress = Callable[[int, int, str], None]
Rows = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

SAMPLE_ROWS = 65_536
BLOCK_ROWS = 16_384
TURNS = 6
LARGEST_RATIO = 400.0


def compress(
    rows: Rows,
    *,
    ratio: float | None = None,
    min_cosine: float | None = None,
    min_recall: float | None = None,
    metric: Metric = "cosine",
    nan: Literal["refuse", "zero"] = "refuse",
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
        ratio: N * D * 4 / stored bytes, >= 1; never exceeded by a byte.
        min_cosine, min_recall: instead of ``ratio``, the smallest table found whose mean cosine or recall@10 of neighbours, as
            ``hfh eval`` measures them, is at least this.
        metric: which neighbours count when forms are compared: by "cosine", "dot" or "l2".
        nan: what rows with NaN or infinite values get: an error, or "zero" for rows of zeros.
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
    rows = _checked(rows, nan, tell)
    if (ratio is not None) + (min_cosine is not None) + (min_recall is not None) != 1:
        raise InputError("give one of ratio, min_cosine and min_recall")
    if metric not in get_args(Metric) or nan not in ("refuse", "zero"):
        raise InputError(f"metric is {metric!r} and nan {nan!r}; allowed are cosine, dot and l2; refuse and zero")
    work = _Work(rows, _blank(name, rows, padding_id, unknown), frequencies, vocabulary, metric, nan, seed, tell)
    if ratio is not None:
        return work.at(ratio)
    for what, floor in (("min_cosine", min_cosine), ("min_recall", min_recall)):
        if floor is not None and not 0 < floor < 1:
            raise InputError(f"{what} is {floor}; give a number between 0 and 1")
    return work.above(min_cosine, min_recall)


class _Work:
    """One table to compress: its sample, and what that gives at any number of bytes."""

    def __init__(
        self,
        rows: Rows,
        table: TableSpec,
        frequencies: npt.NDArray[np.number] | None,
        vocabulary: Vocabulary | Sequence[str] | None,
        metric: Metric,
        nan: str,
        seed: int,
        tell: Progress,
    ) -> None:
        self.rows, self.table, self.frequencies, self.vocabulary = rows, table, frequencies, vocabulary
        self.metric, self.nan, self.seed, self.tell = metric, nan, seed, tell
        self.weights = _weights(frequencies, len(rows))
        self.ids, self.sample = _sampled(rows, self.weights, seed)
        self.ranks = np.empty(0, dtype=np.int64)
        if frequencies is not None:
            order = np.argsort(-np.asarray(frequencies, dtype=np.float64), kind="stable")
            self.ranks = np.argsort(order)[self.ids]

    def choice(self, ratio: float, quick_only: bool = False) -> Choice | None:
        return choose(
            self.table,
            int(self.table.dense_nbytes / ratio),
            self.sample,
            self.ranks,
            metric=self.metric,
            threads=cores(),
            seed=self.seed,
            tell=self.tell,
            quick_only=quick_only,
        )

    def at(self, ratio: float) -> Snapshot:
        """The table at this ratio."""
        if not (isinstance(ratio, int | float) and np.isfinite(ratio) and ratio >= 1):
            raise RatioError(
                f"ratio is {ratio!r}; give a number from 1 on (20 means twenty times smaller)", nearest=1.0
            )
        name, choice = self.table.name, self.choice(ratio)
        if choice is None:
            smallest_nbytes = smallest(self.table, self.sample, self.seed)
            nearest = max(np.floor(self.table.dense_nbytes / smallest_nbytes * 1e4) / 1e4, 1.0)
            raise RatioError(
                f"ratio {ratio:g} allows {int(self.table.dense_nbytes / ratio):,} bytes for table {name!r}, too few for any form; "
                f"the nearest ratio that can be met is {nearest:g}",
                nearest=nearest,
            )
        arrays, error = _encode(choice.fit, self.rows, self.weights, self.frequencies, self.tell)
        return Snapshot(
            SnapshotSpec((choice.fit.table,)),
            {f"table/{name}/{key}": array for key, array in arrays.items()},
            vocabularies={name: self.vocabulary} if self.vocabulary is not None else None,
            metadata={
                "method": _describe(choice.fit.table),
                "relative error": f"{error:.4f}",
                "expected": f"mean cosine {choice.mean_cosine:.4f}; recall@10 {choice.recall_at_10:.3f} among "
                f"{min(TRIAL_ROWS, len(self.sample.rows)):,} rows of the sample",
            },
        )

    def above(self, min_cosine: float | None, min_recall: float | None) -> Snapshot:
        """The smallest table found that keeps the mean cosine, or the recall, that is asked for."""
        floor = min_cosine if min_cosine is not None else min_recall
        assert floor is not None
        aim = floor
        for _ in range(TURNS):
            snapshot = self.at(self._largest_ratio(aim, min_cosine is not None))
            found = fidelity.compare(snapshot[self.table.name], self.rows, seed=self.seed, progress=self.tell)
            got = found.mean_cosine if min_cosine is not None else found.recall_at_10
            if got >= floor:
                return snapshot
            aim = min(aim + 1.2 * (floor - got), (1 + aim) / 2)  # the sample promised more than the table kept
        raise InputError(
            f"no table was found that keeps {floor:g}; the last one kept {got:.4f}: give a smaller number or a ratio"
        )

    def _largest_ratio(self, aim: float, cosine: bool) -> float:
        """The largest ratio whose quick fit keeps ``aim`` on the sample, to a hundredth; 1 where none does."""
        low, high = 0.0, float(np.log(LARGEST_RATIO))
        while high - low > 0.01:
            middle = (low + high) / 2
            choice = self.choice(float(np.exp(middle)), quick_only=True)
            got = -1.0 if choice is None else choice.mean_cosine if cosine else choice.recall_at_10
            low, high = (middle, high) if got >= aim else (low, middle)
        return float(np.exp(low))


def _blank(name: str, rows: Rows, padding_id: int | None, unknown: Unknown | str) -> TableSpec:
    """A table of the right sizes; its part is replaced by the fit's."""
    n, dim = rows.shape
    part = PrivateSpec(dim, 32)
    return TableSpec(name, n, dim, private=part, padding_id=padding_id, unknown=Unknown(unknown))


def _checked(rows: Rows, nan: str, tell: Progress) -> Rows:
    if not isinstance(rows, np.ndarray) or rows.dtype.kind != "f":
        given = f"{rows.dtype} array" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise InputError(f"rows are a {given}; give a float array of shape (ids, entries)")
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"rows have shape {rows.shape}; give (ids, entries), both at least 1")
    untouched = rows
    for start in range(0, len(rows), BLOCK_ROWS):
        block = _block(rows, slice(start, start + BLOCK_ROWS))
        wrong = ~np.isfinite(block).all(axis=1)
        if nan == "zero" and wrong.any():
            if rows is untouched:
                rows = np.array(rows, dtype=np.float32)
            rows[start : start + BLOCK_ROWS][wrong] = 0
        elif wrong.any():
            listed = ", ".join(str(start + number) for number in np.flatnonzero(wrong)[:5])
            raise InputError(
                f"rows {listed}{' and more' if wrong.sum() > 5 else ''} hold NaN or infinite values; remove or mend them, or make them zero (nan='zero', --nan zero)"
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


def cores() -> int:
    """The processors that this process may use."""
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
