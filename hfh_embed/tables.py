"""Dense tables out of the files that people have: .npy, .npz, safetensors, torch checkpoints, word vectors as text, parquet."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.container import read_container
from hfh_embed.errors import InputError, MissingDependencyError, SnapshotError
from hfh_embed.text_vectors import read_text

__all__ = ["DenseTable", "pyarrow_for", "read_table", "read_vocabulary"]

Rows = npt.NDArray[Any]


@dataclass(frozen=True)
class DenseTable:
    """A dense table: its name, (N, D) floats (a memory map where the file allows), and the key of each id if known."""

    name: str
    rows: Rows
    vocabulary: Sequence[str] | None = None


def read_table(path: Path, tensor: str | None = None, vocabulary: Path | None = None) -> DenseTable:
    """Read a dense table, its format by the file's ending.

    Args:
        path: .npy, .npz, .safetensors, .pt/.pth/.bin/.ckpt (torch), .parquet, or .txt/.vec (word2vec and GloVe text).
        tensor: which tensor or column of a file with several.
        vocabulary: a text file with one key a line. Word vectors bring their own.

    Raises:
        InputError: the file does not hold such a table; the message says what it holds.
        OSError: it cannot be read.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file")
    readers: dict[str, Callable[[Path, str | None], DenseTable]] = {
        ".npy": _npy,
        ".npz": _npz,
        ".safetensors": _safetensors,
        ".pt": _torch,
        ".pth": _torch,
        ".bin": _torch,
        ".ckpt": _torch,
        ".parquet": _parquet,
        ".txt": _text,
        ".vec": _text,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} ends in {path.suffix or 'nothing'!r}; readable are {', '.join(readers)}")
    with open(path, "rb"):  # missing and unreadable files fail here, with the system's own words
        pass
    table = reader(path, tensor)
    rows = _floats(table.rows, path, table.name)
    keys = table.vocabulary
    if vocabulary is not None:
        keys = read_vocabulary(vocabulary)
    if keys is not None and len(keys) != len(rows):
        raise InputError(f"the vocabulary has {len(keys):,} keys for {len(rows):,} rows; give one key a row")
    return DenseTable(_name(table.name), rows, keys)


def read_vocabulary(path: Path) -> list[str]:
    """One key a line, in the order of the ids."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _name(name: str) -> str:
    """A tensor's or file's name as a table's name."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_.-") else "_" for letter in name)
    return plain.lstrip(".-")[:128] or "table"


def _floats(rows: Rows, path: Path, name: str) -> Rows:
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(
            f"{path}: {name!r} has shape {rows.shape}; give a table of shape (ids, entries), both at least 1"
        )
    if rows.dtype.kind != "f":
        raise InputError(f"{path}: {name!r} holds {rows.dtype}; give floats (convert integers with .astype('float32'))")
    return rows


def _npy(path: Path, tensor: str | None) -> DenseTable:
    if tensor is not None:
        raise InputError(f"{path} has one unnamed table; leave --tensor out")
    try:
        return DenseTable(path.stem, np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a readable .npy array ({error})") from None


def _npz(path: Path, tensor: str | None) -> DenseTable:
    try:
        with np.load(path, allow_pickle=False) as archive:
            headers = {name: _npz_shape(path, name) for name in archive.files}
            name = _pick(path, tensor, headers)
            return DenseTable(name, archive[name])
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a readable .npz archive ({error})") from None


def _npz_shape(path: Path, name: str) -> tuple[int, ...]:
    """A member's shape from its header, without reading it."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, _ = read(member)
    return shape


def _safetensors(path: Path, tensor: str | None) -> DenseTable:
    try:
        container = read_container(path)
    except SnapshotError as error:
        raise InputError(str(error)) from None
    name = _pick(path, tensor, {key: entry.shape for key, entry in container.entries.items()})
    rows = container.arrays()[name]
    if container.entries[name].dtype == "BF16":
        rows = _from_bfloat16(rows)
    vocabulary = path.with_name("vocab.txt")
    keys = read_vocabulary(vocabulary) if vocabulary.is_file() else None
    return DenseTable(name, rows, keys if keys is not None and len(keys) == len(rows) else None)


def _from_bfloat16(raw: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """A bfloat16 is the upper half of a float32."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


def _torch(path: Path, tensor: str | None) -> DenseTable:
    try:
        import torch
    except ImportError:
        raise MissingDependencyError(
            f"reading {path} needs torch; install it with: pip install 'hfh-embed[torch]', or save the table as .npy"
        ) from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, with long texts
        raise InputError(
            f"{path} is not a checkpoint that torch can load without running code in it "
            f"({type(error).__name__}: {str(error).splitlines()[0][:120]}); save a state_dict"
        ) from None
    tensors: dict[str, Any] = {}
    _collect(loaded, "", tensors, torch.Tensor)
    name = _pick(path, tensor, {key: tuple(value.shape) for key, value in tensors.items()})
    picked = tensors[name].detach()
    if picked.dtype == torch.bfloat16:
        picked = picked.float()
    return DenseTable(name or path.stem, picked.numpy())


def _collect(item: Any, name: str, found: dict[str, Any], kind: type) -> None:
    """Tensors in nested dictionaries, by dotted name."""
    if isinstance(item, kind):
        found[name or "tensor"] = item
    elif isinstance(item, Mapping):
        for key, value in item.items():
            _collect(value, f"{name}.{key}" if name else str(key), found, kind)


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


def _parquet(path: Path, tensor: str | None) -> DenseTable:
    pa, pq = pyarrow_for(path)
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a readable parquet file ({error})") from None
    lists = [
        field.name
        for field in file.schema_arrow
        if pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    ]
    if tensor is None and len(lists) != 1:
        raise InputError(f"{path} has {len(lists)} list columns ({', '.join(lists[:20])}); name one with --tensor")
    name = tensor or lists[0]
    if name not in lists:
        raise InputError(f"{path} has no list column {name!r}; there are {', '.join(lists[:20]) or 'none'}")
    column = file.read([name])[name].combine_chunks()
    lengths = (
        {len(row) if row is not None else 0 for row in column}
        if pa.types.is_list(column.type)
        else {column.type.list_size}
    )
    if len(lengths) != 1 or column.null_count:
        raise InputError(f"{path}: rows of column {name!r} differ in length or are missing; give one length")
    values = column.flatten().to_numpy(zero_copy_only=False)
    return DenseTable(name, values.reshape(-1, lengths.pop()))


def _text(path: Path, tensor: str | None) -> DenseTable:
    if tensor is not None:
        raise InputError(f"{path} has one unnamed table; leave --tensor out")
    rows, keys = read_text(path)
    return DenseTable(path.stem, rows, keys)


def _pick(path: Path, wanted: str | None, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The tensor that is meant: the one named, the only table, or the only one whose name says embedding."""
    tables = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    if wanted is not None:
        if wanted not in shapes:
            raise InputError(f"{path} has no tensor {wanted!r}; tables in it are {_listed(tables)}")
        return wanted
    if len(shapes) == 1:
        return next(iter(shapes))
    named = [name for name in tables if "embed" in name.lower() and "position" not in name and "type" not in name]
    for candidates in (list(tables), named):
        if len(candidates) == 1:
            return candidates[0]
    raise InputError(f"{path} has {len(tables)} tables; name one with --tensor: {_listed(tables)}")


def _listed(tables: Mapping[str, tuple[int, ...]]) -> str:
    largest = sorted(tables.items(), key=lambda item: -item[1][0])[:8]
    text = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in largest)
    return (text or "none") + (" …" if len(tables) > 8 else "")
