"""Dense rows in a list column of Parquet or Arrow files, read part by part: one file, or the shards in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import InputError, MissingDependencyError

__all__ = ["ENDINGS", "ArrowRows", "arrow_files", "pyarrow_for"]

Rows = npt.NDArray[Any]
ENDINGS = (".parquet", ".arrow", ".feather")
BATCH_ROWS = 16_384


def pyarrow_for(path: Path) -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet, or a sentence about how to read this file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingDependencyError(
            f"reading {path} needs pyarrow; install it with: pip install 'hfh-embed[parquet]'"
        ) from None
    return pa, pq


def arrow_files(path: Path) -> tuple[Path, ...]:
    """The file itself, or the shards of a folder by name; InputError where there are none or of several kinds."""
    if not path.is_dir():
        return (path,)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in ENDINGS)
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) != 1:
        found = f"files that end in {' and '.join(kinds)}" if kinds else "no shards"
        raise InputError(f"folder {path} has {found}; give a folder of {', '.join(ENDINGS)} files, all of one kind")
    return tuple(files)


class _Piece(NamedTuple):
    """Rows that a file gives at once: a row group of Parquet, a record batch of Arrow."""

    file: int
    number: int
    start: int


class ArrowRows:
    """The rows (N, D) of all files one after the other. One batch is in memory at a time; not for several threads."""

    def __init__(self, files: tuple[Path, ...], column: str | None = None) -> None:
        """InputError where a file is not readable or lacks the column; ``column`` may be left out where there is one."""
        self.files = files
        self._pa, self._pq = pyarrow_for(files[0])
        self._opened: tuple[int, Any] | None = None
        self.column, self._type = self._column(column)
        self._pieces: list[_Piece] = []
        count = 0
        for number in range(len(files)):
            for piece, rows in enumerate(self._counts(number)):
                if rows:
                    self._pieces.append(_Piece(number, piece, count))
                    count += rows
        self._starts = np.array([piece.start for piece in self._pieces], dtype=np.int64)
        self._batch: tuple[int, Rows] = (-1, np.empty((0, 0)))
        self._rest: Iterator[tuple[int, Rows]] = iter(())
        self._dim = 0
        self.dtype: np.dtype[Any] = np.dtype(self._type.value_type.to_pandas_dtype())
        if count:
            self._dim = self._at(0)[1].shape[1]
        self.shape = (count, self._dim)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """2, as of any table."""
        return 2

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowRows, (self.files, self.column)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Rows:
        return np.asarray(self[:], dtype=dtype)

    def __getitem__(self, which: slice | npt.NDArray[np.integer]) -> Rows:
        """Rows of a slice (of step 1), or of ids in any order, which are read in the order of the files."""
        if isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            if step != 1:
                raise IndexError("rows of a file are read one after the other; give a slice without a step")
            ids = np.arange(start, max(start, stop))
        else:
            ids = np.asarray(which)
        if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
            raise IndexError(f"rows {ids.min()} to {ids.max()} of {len(self)}")
        order = np.argsort(ids, kind="stable")
        wanted, found = ids[order], np.empty((len(ids), self.shape[1]), dtype=self.dtype)
        place = 0
        while place < len(wanted):
            first, batch = self._at(int(wanted[place]))
            end = int(np.searchsorted(wanted, first + len(batch)))
            found[order[place:end]] = batch[wanted[place:end] - first]
            place = end
        return found

    def _at(self, row: int) -> tuple[int, Rows]:
        """The batch with this row and the number of its first row: the one at hand, one that follows, or a fresh start."""
        piece = self._pieces[int(np.searchsorted(self._starts, row, side="right")) - 1]
        first, batch = self._batch
        if not piece.start <= first <= row:
            self._rest = self._batches(piece)
        while not first <= row < first + len(batch):
            if (following := next(self._rest, None)) is None:
                raise InputError(f"{self.files[piece.file]} has fewer rows than it claims; write it again")
            self._batch = first, batch = following
        return self._batch

    def _batches(self, piece: _Piece) -> Iterator[tuple[int, Rows]]:
        file, first = self._open(piece.file), piece.start
        if self._is_parquet(piece.file):
            batches = file.iter_batches(BATCH_ROWS, row_groups=[piece.number], columns=[self.column])
        else:
            batches = iter([file.get_batch(piece.number)])
        try:
            for batch in batches:
                rows = self._floats(batch.column(batch.schema.get_field_index(self.column)), piece, first)
                yield first, rows
                first += len(rows)
        except (self._pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{self.files[piece.file]} is damaged ({error}); write it again") from None

    def _floats(self, column: Any, piece: _Piece, first: int) -> Rows:
        if self._pa.types.is_fixed_size_list(column.type):
            lengths = {column.type.list_size} if len(column) else set()
        else:
            lengths = set(np.diff(column.offsets.to_numpy()).tolist())
        if column.null_count or len(lengths) != 1 or (self._dim and lengths != {self._dim}):
            raise InputError(
                f"{self.files[piece.file]}: rows of column {self.column!r} from row {first - piece.start:,} on differ in length "
                f"or are missing; give one length"
            )
        values: Rows = column.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), -1)

    def _is_parquet(self, number: int) -> bool:
        return self.files[number].suffix.lower() == ".parquet"

    def _open(self, number: int) -> Any:
        if self._opened is None or self._opened[0] != number:
            path = self.files[number]
            try:
                if self._is_parquet(number):
                    opened = self._pq.ParquetFile(path, memory_map=True)
                else:
                    opened = self._pa.ipc.open_file(self._pa.memory_map(str(path)))
            except self._pa.ArrowInvalid as error:
                kind = "parquet" if self._is_parquet(number) else "Arrow (Feather version 2)"
                raise InputError(f"{path} is not a readable {kind} file ({error})") from None
            self._opened = (number, opened)
        return self._opened[1]

    def _counts(self, number: int) -> list[int]:
        file = self._open(number)
        column, kind = self._column(self.column)
        if kind.value_type != self._type.value_type:
            raise InputError(f"{self.files[number]}: column {column!r} is {kind}; in the first file it is {self._type}")
        if self._is_parquet(number):
            return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        return [file.get_batch(batch).num_rows for batch in range(file.num_record_batches)]

    def _column(self, wanted: str | None) -> tuple[str, Any]:
        """Name and type of the list column of the file that is open, or of the first."""
        number = self._opened[0] if self._opened is not None else 0
        path, file, types = self.files[number], self._open(number), self._pa.types
        schema = file.schema_arrow if self._is_parquet(number) else file.schema
        kinds = (types.is_list, types.is_fixed_size_list, types.is_large_list)
        lists = {field.name: field.type for field in schema if any(kind(field.type) for kind in kinds)}
        if wanted is None and len(lists) != 1:
            raise InputError(
                f"{path} has {len(lists)} list columns ({', '.join([*lists][:20])}); name one with --tensor"
            )
        name = wanted or next(iter(lists))
        if name not in lists:
            raise InputError(f"{path} has no list column {name!r}; there are {', '.join([*lists][:20]) or 'none'}")
        return name, lists[name]
