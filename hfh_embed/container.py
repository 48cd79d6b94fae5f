"""The file layout under a snapshot: safetensors, read strictly, and files that are replaced whole or not at all.

The layout (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON header, then the tensors'
bytes without holes. Nothing here trusts a file: every size is checked against the file's own before anything is allocated.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hfh_embed.errors import InputError, SnapshotError
from hfh_embed.layout import Array, ArraySpec

__all__ = ["ALIGNMENT", "Container", "Entry", "encode_header", "read_container", "replacing"]

ALIGNMENT = 64
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # numpy has no bfloat16: the raw 16 bits
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: the name of its dtype, its shape, and its first and last byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Container:
    """A parsed safetensors file. ``header`` has the header's exact bytes, ``size`` those of the file."""

    path: Path
    header: bytes
    size: int
    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]

    def arrays(self) -> dict[str, Array]:
        """Every tensor as a read-only view of one memory map of the file."""
        if self.size == 8 + len(self.header):
            return {name: np.empty(e.shape, DTYPES[e.dtype]) for name, e in self.entries.items()}
        mapped = np.memmap(self.path, dtype=np.uint8, mode="r", shape=(self.size,)).view(np.ndarray)
        return {
            name: mapped[entry.start : entry.end].view(DTYPES[entry.dtype]).reshape(entry.shape)
            for name, entry in self.entries.items()
        }


def read_container(path: Path) -> Container:
    """Parse the header of a safetensors file; SnapshotError says what is wrong with it."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        if len(prefix) < 8:
            raise SnapshotError(f"{path} has {size} bytes, too few for a header; it is truncated or of another kind")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise SnapshotError(
                f"{path} claims a header of {length} bytes, but has {size} in all; it is damaged, truncated or of another kind"
            )
        header = file.read(length)
    return _parse(path, header, size)


def _parse(path: Path, header: bytes, size: int) -> Container:
    try:
        document = json.loads(header, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"{path} has a header that is not valid JSON ({error})") from None
    if not isinstance(document, dict):
        raise SnapshotError(f"{path} has a header that is not a JSON object")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SnapshotError(f"{path} has metadata that do not map strings to strings")
    first = 8 + len(header)
    entries = {name: _entry(path, name, fields, first) for name, fields in document.items()}
    expected = first
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != expected:
            raise SnapshotError(
                f"{path}: tensor {name!r} starts at byte {entry.start}, not {expected}: a hole or an overlap"
            )
        expected = entry.end
    if expected != size:
        raise SnapshotError(
            f"{path} has {size} bytes where its header describes {expected}; it is truncated or has a tail"
        )
    return Container(path, header, size, metadata, entries)


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key appears twice")
    return result


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _entry(path: Path, name: str, fields: object, first: int) -> Entry:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise SnapshotError(f"{path}: tensor {name!r} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise SnapshotError(f"{path}: tensor {name!r} has dtype {str(dtype)[:20]!r}; supported are {', '.join(DTYPES)}")
    if not _sizes(shape) or len(shape) > 32 or not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise SnapshotError(f"{path}: tensor {name!r} has an impossible shape or place")
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise SnapshotError(
            f"{path}: tensor {name!r} has {offsets[1] - offsets[0]} bytes where its shape needs {nbytes}"
        )
    return Entry(dtype, tuple(shape), first + offsets[0], first + offsets[1])


def _sizes(value: object) -> bool:
    """Whether value is a list of sane sizes (bool is an int to Python, so it is excluded by type)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def encode_header(arrays: Mapping[str, ArraySpec], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of a header, padded with spaces so that the tensors start at a multiple of 64 bytes."""
    document: dict[str, object] = {"__metadata__": dict(metadata)}
    place = 0
    for name, array in arrays.items():
        document[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [place, place + array.nbytes],
        }
        place += array.nbytes
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` when all went well; otherwise nothing is left and ``path`` stays."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file; choose another name for the output")
    name = path.absolute().parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None  # the name that the user knows
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    directory = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
