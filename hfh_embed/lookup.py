"""Looking rows up: what a user asks of one table, checked here and computed by a kernel."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import InputError, UnknownIdError
from hfh_embed.hashing import key_ids
from hfh_embed.kernels import prepare
from hfh_embed.layout import TableData, table_arrays
from hfh_embed.rotation import raw_dim, unrotated
from hfh_embed.search import Metric, check, nearest
from hfh_embed.spec import TableSpec, Unknown
from hfh_embed.vocabulary import Vocabulary

__all__ = ["Table", "bag_bounds"]

Mode = Literal["sum", "mean", "max"]
Rows = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
OUTPUTS = (np.dtype(np.float32), np.dtype(np.float16))


class Table:
    """One table of a snapshot. Safe to use from many threads at once."""

    def __init__(self, data: TableData, vocabulary: Vocabulary | None = None, kernels: str | None = None) -> None:
        self.data = data
        self._kernels = kernels
        self.spec: TableSpec = data.table
        self.vocabulary = vocabulary
        self._kernel = prepare(data, kernels)
        self._plain_lookup = self._kernel.lookup

    @property
    def name(self) -> str:
        """The table's name in its snapshot."""
        return self.spec.name

    @property
    def num_embeddings(self) -> int:
        """N, the number of ids."""
        return self.spec.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """D, the entries of a row."""
        return self.spec.embedding_dim

    @property
    def unknown(self) -> Unknown:
        """What ids outside the table get."""
        return self.spec.unknown

    @property
    def nbytes(self) -> int:
        """Stored bytes that belong to this table alone, without the pool and networks that it shares."""
        return sum(array.nbytes for array in table_arrays(self.spec).values())

    @property
    def raw_dim(self) -> int | None:
        """The entries of raw rows (see :meth:`lookup`); None where the table has none."""
        return raw_dim(self.spec)

    @functools.cached_property
    def raw(self) -> Table:
        """The table of raw rows, (N, raw_dim); InputError where there are none."""
        return Table(unrotated(self.data)[0], self.vocabulary, self._kernels)

    @functools.cached_property
    def rotation(self) -> npt.NDArray[np.float32]:
        """(raw_dim, D), orthonormal rows and then zeros: a row is its raw row times this. InputError where there are no raw rows."""
        return unrotated(self.data)[1]

    def __repr__(self) -> str:
        return f"Table({self.name!r}, {self.num_embeddings} x {self.embedding_dim})"

    def lookup(
        self,
        ids: npt.ArrayLike,
        *,
        dtype: npt.DTypeLike = np.float32,
        out: Rows | None = None,
        num_threads: int = 1,
        raw: bool = False,
    ) -> Rows:
        """The rows of ids.

        Args:
            ids: integers >= 0, any shape.
            dtype: float32 or float16 (rounded to nearest).
            out: a C-contiguous array of that dtype and the result's shape to write into.
            num_threads: threads of the kernel.
            raw: rows before their last rotation, of ``raw_dim`` entries: their lengths, distances and dot products with each other
                are those of the rows, they are smaller and cheaper, and ``rotation`` turns them into rows.

        Returns:
            shape of ids + (D,), or (raw_dim,).

        Raises:
            InputError: ids are not integers, ``out`` does not fit, or the table has no raw rows.
            UnknownIdError: a negative id, or one outside the table whose policy is ``error``.
        """
        if raw:
            return self.raw.lookup(ids, dtype=dtype, out=out, num_threads=num_threads)
        if out is None and (plain := self._plain_lookup(ids, dtype, num_threads)) is not None:
            return plain
        wanted = _ids(ids)
        shape = (*wanted.shape, self.spec.embedding_dim)
        rows = _output(out, shape, dtype)
        flat = wanted.reshape(-1)
        refused = self._kernel.rows(flat, rows.reshape(-1, shape[-1]), num_threads)
        if refused >= 0:
            raise self._unknown(int(flat[refused]))
        return rows

    def bag(
        self,
        ids: npt.ArrayLike,
        offsets: npt.ArrayLike | None = None,
        *,
        mode: Mode = "mean",
        per_sample_weights: npt.ArrayLike | None = None,
        include_last_offset: bool = False,
        dtype: npt.DTypeLike = np.float32,
        num_threads: int = 1,
    ) -> Rows:
        """One row for each bag of ids, by the rules of ``torch.nn.functional.embedding_bag``.

        Args:
            ids: (L,) with ``offsets``, or (bags, ids of each) without.
            offsets: (bags,) first position of each bag, ascending from 0; with ``include_last_offset`` (bags + 1,).
            mode: "sum", "mean" or "max". Ids equal to the padding id do not count; an empty bag is zeros.
            per_sample_weights: same shape as ids, only with mode "sum".
            include_last_offset: whether the last offset is the end of the last bag.
            dtype: float32 or float16.
            num_threads: threads of the kernel.

        Returns:
            (bags, D).

        Raises:
            InputError, UnknownIdError: as for :meth:`lookup`, and for offsets or weights that do not fit.
        """
        if mode not in get_args(Mode):
            raise InputError(f"mode is {mode!r}; allowed are sum, mean and max")
        if not include_last_offset and (mode == "sum" or per_sample_weights is None):
            plain = self._kernel.plain_bag(ids, offsets, per_sample_weights, mode, dtype, num_threads)
            if plain is not None:
                return plain
        wanted = _ids(ids)
        flat = wanted.reshape(-1)
        bounds = bag_bounds(wanted, offsets, include_last_offset)
        weights = None
        if per_sample_weights is not None:
            if mode != "sum":
                raise InputError(f"per_sample_weights go with mode 'sum', not {mode!r}")
            given = np.asarray(per_sample_weights)
            if given.shape != wanted.shape or given.dtype.kind not in "fiu":
                raise InputError(
                    f"per_sample_weights are {given.dtype} of shape {given.shape}; give numbers of the ids' shape {wanted.shape}"
                )
            weights = np.require(given.reshape(-1), dtype=np.float32, requirements=("C", "A"))
        rows = _output(None, (len(bounds) - 1, self.spec.embedding_dim), dtype)
        refused = self._kernel.bag(flat, bounds, weights, mode, rows, num_threads)
        if refused >= 0:
            raise self._unknown(int(flat[refused]))
        return rows

    def search(
        self, vectors: npt.ArrayLike, k: int = 10, *, metric: Metric = "dot", num_threads: int = 1
    ) -> tuple[Ids, npt.NDArray[np.float32]]:
        """The rows nearest to each vector, exactly: the whole table is reconstructed, a tile at a time.

        Args:
            vectors: (D,) or (Q, D), finite. Several at once cost much less than one after the other.
            k: how many, from 1 to 1,000; fewer are found in a table with fewer rows.
            metric: "dot" (inner product), "cosine", or "l2" (squared Euclidean distance, smallest first).
            num_threads: threads over parts of the table. numpy's BLAS may use more of its own; on busy cores these slow a
                search down by much, so limit them (OPENBLAS_NUM_THREADS=1, or threadpoolctl), as the service does.

        Returns:
            ids (k,) or (Q, k) int64, nearest first, equals by ascending id, and their scores, float32. The padding id is
            never found; a row of zeros has cosine 0.

        Raises:
            InputError: vectors, k or metric are not as above.
        """
        queries = np.asarray(vectors)
        check(queries, self.embedding_dim, k, metric)
        ids, scores = nearest(
            self._kernel.rows,
            self.num_embeddings,
            np.atleast_2d(queries),
            int(k),
            metric,
            without=self.spec.padding_id,
            num_threads=num_threads,
        )
        return (ids[0], scores[0]) if queries.ndim == 1 else (ids, scores)

    def ids_of(self, keys: Sequence[str]) -> Ids:
        """String keys as ids, (len(keys),) int64: by the table's vocabulary, else by :func:`hfh_embed.key_ids`.

        A key that the vocabulary lacks raises UnknownIdError, or becomes id N (outside the table) where unknown ids get
        zeros.
        """
        if isinstance(keys, str) or not all(isinstance(key, str) for key in keys):
            raise InputError("keys must be a list of strings")
        if self.vocabulary is None:
            return key_ids(keys, self.num_embeddings)
        ids = self.vocabulary.find(keys)
        if self.unknown is Unknown.ZERO:
            ids[ids < 0] = self.num_embeddings
        elif ids.size and ids.min() < 0:
            missing = keys[int(np.argmax(ids < 0))]
            raise UnknownIdError(f"key {missing[:80]!r} is not in the vocabulary of table {self.name!r}")
        return ids

    def _unknown(self, id_: int) -> UnknownIdError:
        last = self.num_embeddings - 1
        if id_ < 0:
            return UnknownIdError(f"id {id_} is negative; table {self.name!r} has ids 0 to {last}")
        return UnknownIdError(f"id {id_} is outside table {self.name!r}, which has ids 0 to {last}")


def _ids(ids: npt.ArrayLike) -> Ids:
    """Ids as C-contiguous int64 of any shape."""
    try:
        given = np.asarray(ids)
    except (ValueError, OverflowError) as error:
        raise InputError(f"ids are not an array of integers ({error})") from None
    if given.dtype != np.int64:
        if given.size == 0 and given.dtype == np.float64 and not isinstance(ids, np.ndarray):  # an empty list
            return np.empty(given.shape, dtype=np.int64)
        if given.dtype.kind not in "iu":
            raise InputError(f"ids have dtype {given.dtype}; give integers from 0 to 2**63 - 1")
        if given.dtype == np.uint64 and given.size and given.max() > np.iinfo(np.int64).max:
            raise InputError(f"id {given.max()} is too large; ids are integers from 0 to 2**63 - 1")
    return np.require(given, dtype=np.int64, requirements=("C", "A")).reshape(given.shape)


def _output(out: Rows | None, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Rows:
    wanted = np.dtype(dtype)
    if wanted not in OUTPUTS:
        raise InputError(f"dtype is {wanted}; rows come as float32 or float16")
    if out is None:
        return np.empty(shape, dtype=wanted)
    if out.shape != shape or out.dtype not in OUTPUTS or not out.flags.c_contiguous or not out.flags.writeable:
        raise InputError(
            f"out is {out.dtype} of shape {out.shape}; give a writable C-contiguous float32 or float16 array of shape {shape}"
        )
    return out


def bag_bounds(ids: Ids, offsets: npt.ArrayLike | None, include_last_offset: bool) -> Ids:
    """Where bags of ids (L,) or (bags, ids of each) begin and end, (bags + 1,) int64; InputError as :meth:`Table.bag`."""
    if ids.ndim == 2:
        if offsets is not None:
            raise InputError("ids are 2-D, each row a bag; leave offsets out")
        return np.arange(len(ids) + 1, dtype=np.int64) * ids.shape[1]
    if ids.ndim != 1:
        raise InputError(f"ids have {ids.ndim} dimensions; give 1 with offsets, or 2")
    if offsets is None:
        raise InputError("1-D ids need offsets, the first position of each bag")
    starts = _ids(offsets)
    if starts.ndim != 1:
        raise InputError(f"offsets have {starts.ndim} dimensions; give 1")
    if include_last_offset and not len(starts):
        raise InputError("offsets are empty; with include_last_offset give at least the end, [0]")
    if len(starts) and starts[0] != 0:
        raise InputError(f"offsets begin with {starts[0]}; the first bag starts at 0")
    if len(starts) and (starts[-1] > len(ids) or (np.diff(starts) < 0).any()):
        raise InputError(f"offsets must ascend and stay within the {len(ids)} ids; they reach {starts.max()}")
    if include_last_offset:
        return starts
    if not len(starts) and len(ids):
        raise InputError(f"{len(ids)} ids, but no bag; give the offset of each bag's first id")
    return np.append(starts, len(ids)) if len(starts) else np.zeros(1, dtype=np.int64)
