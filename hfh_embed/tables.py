"""Dense tables out of the files that people have: .npy, .npz, safetensors, torch checkpoints, word vectors as text, Parquet, Arrow."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hfh_embed.arrow_rows import ENDINGS, ArrowRows, arrow_files
from hfh_embed.container import read_container
from hfh_embed.dense import DenseRows
from hfh_embed.errors import InputError, MissingDependencyError, SnapshotError
from hfh_embed.text_vectors import read_text

__all__ = ["DenseTable", "read_table", "read_vocabulary"]

Rows = npt.NDArray[Any]


@dataclass(frozen=True)
class DenseTable:
    """A dense table: its name, (N, D) floats (mapped or read part by part where the file allows), and the key of each id if known."""

    name: str
    rows: DenseRows
    vocabulary: Sequence[str] | None = None


def read_table(path: Path, tensor: str | None = None, vocabulary: Path | None = None) -> DenseTable:
    """Read a dense table, its format by the file's ending.

    Args:
        path: .npy, .npz, .safetensors, .pt/.pth/.bin/.ckpt (torch), .parquet, .arrow/.feather or a folder of such shards, or
            .txt/.vec (word2vec and GloVe text).
        tensor: which tensor or column of a file with several.
        vocabulary: a text file with one key a line. Word vectors bring their own.

    Raises:
        InputError: the file does not hold such a table; the message says what it holds.
        OSError: it cannot be read.
    """
    readers: dict[str, Callable[[Path, str | None], DenseTable]] = {
        ".npy": _npy,
        ".npz": _npz,
        ".safetensors": _safetensors,
        ".pt": _torch,
        ".pth": _torch,
        ".bin": _torch,
        ".ckpt": _torch,
        **dict.fromkeys(ENDINGS, _arrow),
        ".txt": _text,
        ".vec": _text,
    }
    reader = readers.get(path.suffix.lower()) if not path.is_dir() else _arrow
    if reader is None:
        raise InputError(f"{path} ends in {path.suffix or 'nothing'!r}; readable are {', '.join(readers)}")
    for file in arrow_files(path):
        with open(file, "rb"):  # missing and unreadable files fail here, with the system's own words
            pass
    table = reader(path, tensor)
    rows = _floats(table.rows, path, table.name)
    keys = table.vocabulary
    if vocabulary is not None:
        keys = read_vocabulary(vocabulary)
    if keys is not None and len(keys) != rows.shape[0]:
        raise InputError(f"the vocabulary has {len(keys):,} keys for {rows.shape[0]:,} rows; give one key a row")
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


def _floats(rows: DenseRows, path: Path, name: str) -> DenseRows:
    if len(rows.shape) != 2 or 0 in rows.shape:
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


def _arrow(path: Path, tensor: str | None) -> DenseTable:
    rows = ArrowRows(arrow_files(path), tensor)
    return DenseTable(rows.column, rows)


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
