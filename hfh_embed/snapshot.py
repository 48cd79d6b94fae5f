"""The snapshot: one immutable file with pools and tables, or the same in memory. ``docs/format.md`` defines every byte."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from hfh_embed.container import NAMES, Container, encode_header, read_container, replacing
from hfh_embed.errors import DamagedError, SnapshotError, TableNotFoundError
from hfh_embed.layout import Array, ArraySpec, SnapshotSpec
from hfh_embed.level_index import problems
from hfh_embed.lookup import Table
from hfh_embed.specjson import spec_from_json, spec_to_json
from hfh_embed.vocabulary import Vocabulary, vocabulary_arrays

__all__ = ["FORMAT_VERSION", "Snapshot", "SnapshotInfo", "inspect", "open", "verify"]

FORMAT_VERSION = "1"
VERSION_DIGITS = 12
COPY_BYTES = 2**22
LINE_BYTES = 64


class Snapshot(Mapping[str, Table]):
    """Pools and their tables, by name. Tables are ready for lookups; the arrays stay where they are (mapped, if from a file)."""

    def __init__(
        self,
        spec: SnapshotSpec,
        arrays: Mapping[str, Array],
        *,
        vocabularies: Mapping[str, Vocabulary | Sequence[str]] | None = None,
        metadata: Mapping[str, str] | None = None,
        path: Path | None = None,
        version: str | None = None,
        kernels: str | None = None,
    ) -> None:
        """Take arrays as :meth:`SnapshotSpec.arrays` names and shapes them; SnapshotError when they differ."""
        for name, expected in spec.arrays().items():
            found = arrays.get(name)
            if found is None or found.dtype != expected.dtype or found.shape != expected.shape:
                given = "is missing" if found is None else f"is {found.dtype} of shape {found.shape}"
                raise SnapshotError(f"array {name!r} {given}; it must be {expected.dtype} of shape {expected.shape}")
        self.spec, self.path = spec, path
        self.metadata = dict(metadata or {})
        self.arrays = {name: _aligned(arrays[name]) if _is_pool(name) else arrays[name] for name in spec.arrays()}
        self.vocabularies = {
            name: keys if isinstance(keys, Vocabulary) else Vocabulary.from_keys(keys)
            for name, keys in (vocabularies or {}).items()
        }
        for name, vocabulary in self.vocabularies.items():
            if len(vocabulary) != spec.table(name).num_embeddings:
                raise SnapshotError(
                    f"the vocabulary of table {name!r} has {len(vocabulary)} keys for {spec.table(name).num_embeddings} ids"
                )
        self._version = version
        self._tables = {
            table.name: Table(spec.data(table.name, self.arrays), self.vocabularies.get(table.name), kernels)
            for table in spec.tables
        }

    def __getitem__(self, name: str) -> Table:
        if name not in self._tables:
            there = ", ".join(list(self._tables)[:20])
            raise TableNotFoundError(f"no table is named {name!r}; there are {there}")
        return self._tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def __repr__(self) -> str:
        return f"Snapshot({len(self)} tables, {self.nbytes:,} bytes, ratio {self.ratio:.1f})"

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the tables; the file is unmapped when no array of it is used any more."""
        self._tables, self.arrays, self.vocabularies = {}, {}, {}

    @property
    def nbytes(self) -> int:
        """All stored bytes that the ratio counts; the header and vocabularies, which a dense table needs too, come on top."""
        return self.spec.nbytes

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the uncompressed float32 tables."""
        return self.spec.dense_nbytes

    @property
    def ratio(self) -> float:
        """Dense bytes over stored bytes."""
        return self.spec.ratio

    def parts(self) -> list[tuple[str, int]]:
        """Every array's name with its bytes, largest first."""
        return list(self.spec.parts())

    @property
    def version(self) -> str:
        """The served identity: the first 12 hex digits of the header's SHA-256, which covers every tensor's own SHA-256."""
        if self._version is None:
            self._version = _version(self._header(self._checksums)[8:])
        return self._version

    def _stored(self) -> dict[str, Array]:
        """Every array in file order: pools, then by falling item size, so that each is aligned."""
        arrays = dict(self.arrays)
        for table, vocabulary in self.vocabularies.items():
            arrays |= {f"vocabulary/{table}/{name}": array for name, array in vocabulary.arrays.items()}
        return dict(sorted(arrays.items(), key=lambda item: (not _is_pool(item[0]), -item[1].dtype.itemsize)))

    @functools.cached_property
    def _checksums(self) -> dict[str, str]:
        return {name: hashlib.sha256(_bytes(array)).hexdigest() for name, array in self._stored().items()}

    def _header(self, checksums: Mapping[str, str]) -> bytes:
        stored = {name: ArraySpec(array.dtype, array.shape) for name, array in self._stored().items()}
        return encode_header(
            stored,
            {
                "format": "hfh",
                "format_version": FORMAT_VERSION,
                "spec": _json(spec_to_json(self.spec)),
                "sha256": _json(checksums),
                "metadata": _json(self.metadata),
            },
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file under a temporary name, then rename it: ``path`` is either the old file or the whole new one."""
        with replacing(Path(path)) as file:
            file.write(self._header(self._checksums))
            for array in self._stored().values():
                _copy(_bytes(array), file)


@dataclass(frozen=True)
class SnapshotInfo:
    """What a snapshot's header tells."""

    version: str
    format_version: str
    spec: SnapshotSpec
    metadata: dict[str, str]
    checksums: dict[str, str]
    vocabularies: dict[str, int]
    file_nbytes: int
    header_nbytes: int
    vocabulary_nbytes: int


def open(path: str | os.PathLike[str], *, kernels: str | None = None) -> Snapshot:
    """Open a snapshot, memory-mapped: instant on any size, and many processes share one copy.

    The header and every size are checked, the tensors' checksums are not (see :func:`verify`).

    Raises:
        SnapshotError: the file is not a readable snapshot.
        OSError: it cannot be read at all.
    """
    container = read_container(Path(path))
    info = _info(container)
    arrays = container.arrays()
    vocabularies = {
        table: Vocabulary({name: arrays[f"vocabulary/{table}/{name}"] for name in vocabulary_arrays(0, 0)})
        for table in info.vocabularies
    }
    return Snapshot(
        info.spec,
        arrays,
        vocabularies=vocabularies,
        metadata=info.metadata,
        path=Path(path),
        version=info.version,
        kernels=kernels,
    )


def inspect(path: str | os.PathLike[str]) -> SnapshotInfo:
    """A snapshot's facts, from its header alone; raises as :func:`open`."""
    return _info(read_container(Path(path)))


def verify(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> None:
    """Read the whole file and compare every checksum; DamagedError names what does not match.

    ``progress(done, total)`` is told the bytes read so far.
    """
    container = read_container(Path(path))
    info = _info(container)
    damaged, done = [], 0
    for name, array in container.arrays().items():
        digest, data = hashlib.sha256(), _bytes(array)
        for start in range(0, len(data), COPY_BYTES):
            block = data[start : start + COPY_BYTES]
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, container.size)
        if digest.hexdigest() != info.checksums[name]:
            damaged.append(name)
        if name.endswith("/exact.ids") and (np.diff(array.astype(np.int64)) <= 0).any():
            damaged.append(f"{name} (ids do not ascend)")
    damaged += _wrong_indexes(info.spec, container.arrays())
    if damaged:
        raise DamagedError(f"{path} is damaged: {', '.join(damaged)}; fetch or make it again")


def _wrong_indexes(spec: SnapshotSpec, arrays: Mapping[str, Array]) -> Iterator[str]:
    for table in spec.tables:
        if table.kept is not None:
            bits = arrays[f"table/{table.name}/kept.bits"]
            parts = (bits[start : start + COPY_BYTES] for start in range(0, len(bits), COPY_BYTES))
            if sum(int(np.unpackbits(part).sum()) for part in parts) != table.kept.count:
                yield f"table/{table.name}/kept.bits (another number of ids is kept)"
        if table.levels is None:
            continue
        wrong = problems(table.levels, table.num_kept, spec.data(table.name, arrays).arrays)
        if wrong is not None:
            yield f"table/{table.name}/levels ({wrong})"


def _info(container: Container) -> SnapshotInfo:
    metadata, path = container.metadata, container.path
    if metadata.get("format") != "hfh":
        raise SnapshotError(
            f"{path} is a safetensors file, but not a snapshot; make one with `hfh compress` or hnn.save"
        )
    if metadata.get("format_version") != FORMAT_VERSION:
        raise SnapshotError(
            f"{path} has format version {metadata.get('format_version', 'none')[:20]!r}; this release reads {FORMAT_VERSION!r}"
        )
    spec = spec_from_json(_field(container, "spec", dict))
    checksums, notes = _strings(container, "sha256"), _strings(container, "metadata")
    found = {name: ArraySpec(_dtype(entry.dtype), entry.shape) for name, entry in container.entries.items()}
    vocabularies = {
        table.name: table.num_embeddings for table in spec.tables if f"vocabulary/{table.name}/bytes" in found
    }
    expected = spec.arrays()
    for name, count in vocabularies.items():
        total = found[f"vocabulary/{name}/bytes"].nbytes
        expected |= {f"vocabulary/{name}/{key}": array for key, array in vocabulary_arrays(count, total).items()}
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name):
            raise SnapshotError(f"{path}: tensor {name[:200]!r} is not what the description needs")
    if checksums.keys() != found.keys():
        raise SnapshotError(f"{path} does not have one checksum for each tensor")
    return SnapshotInfo(
        version=_version(container.header),
        format_version=FORMAT_VERSION,
        spec=spec,
        metadata=notes,
        checksums=checksums,
        vocabularies=vocabularies,
        file_nbytes=container.size,
        header_nbytes=8 + len(container.header),
        vocabulary_nbytes=sum(array.nbytes for name, array in expected.items() if name.startswith("vocabulary/")),
    )


def _field(container: Container, name: str, kind: type) -> Any:
    try:
        value = json.loads(container.metadata[name])
    except (KeyError, ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise SnapshotError(f"{container.path}: the header's {name!r} is missing or malformed")
    return value


def _strings(container: Container, name: str) -> dict[str, str]:
    value = _field(container, name, dict)
    if not all(isinstance(item, str) for item in value.values()):
        raise SnapshotError(f"{container.path}: the header's {name!r} must map strings to strings")
    return dict(value)


def _dtype(name: str) -> np.dtype[np.generic]:
    return next((dtype for dtype, known in NAMES.items() if known == name), np.dtype(object))


def _version(header: bytes) -> str:
    return hashlib.sha256(header).hexdigest()[:VERSION_DIGITS]


def _is_pool(name: str) -> bool:
    return name.startswith("pool/") and name.endswith("/values")


def _aligned(pool: Array) -> Array:
    """The pool on a cache line's boundary, as a file has it: a line that straddles two costs twice the time."""
    if pool.ctypes.data % LINE_BYTES == 0:
        return pool
    room = np.empty(pool.nbytes + LINE_BYTES, dtype=np.uint8)
    start = -room.ctypes.data % LINE_BYTES
    moved: Array = room[start : start + pool.nbytes].view(pool.dtype)
    moved[:] = pool
    return moved


def _bytes(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _copy(data: memoryview, file: BinaryIO) -> None:
    for start in range(0, len(data), COPY_BYTES):
        file.write(data[start : start + COPY_BYTES])


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
