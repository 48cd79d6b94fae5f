"""The keys of a table whose ids have names: words, product codes.

Three arrays, used where they lie in the file, so that a vocabulary of millions costs no memory until it is asked::

    bytes    (total,) uint8     the keys' UTF-8 bytes, one after the other, in the order of their ids
    offsets  (N + 1,) int64     key i is bytes[offsets[i] : offsets[i + 1]]
    hashes   (N,) uint64        BLAKE2b-64 of each key, ascending
    order    (N,) uint32/int64  the id of each hash

A key is found by its hash, then compared byte for byte.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import InputError, SnapshotError
from hfh_embed.layout import I64, U8, U32, Array, ArraySpec

__all__ = ["Vocabulary", "key_hash", "vocabulary_arrays"]

U64 = np.dtype("<u8")


def key_hash(key: bytes) -> int:
    """BLAKE2b-64 of a key's UTF-8 bytes, little-endian."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def vocabulary_arrays(count: int, total: int) -> dict[str, ArraySpec]:
    """The arrays of a vocabulary of ``count`` keys with ``total`` bytes."""
    return {
        "offsets": ArraySpec(I64, (count + 1,)),
        "hashes": ArraySpec(U64, (count,)),
        "order": ArraySpec(U32 if count <= 2**32 else I64, (count,)),
        "bytes": ArraySpec(U8, (total,)),
    }


class Vocabulary:
    """Keys by id and ids by key, over the arrays above."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = arrays
        self._bytes, self._offsets = arrays["bytes"], arrays["offsets"]
        self._hashes, self._order = arrays["hashes"], arrays["order"]

    @classmethod
    def from_keys(cls, keys: Iterable[str]) -> Vocabulary:
        """Build from keys in the order of their ids; InputError names a key that appears twice or is not text."""
        encoded = []
        for number, key in enumerate(keys):
            try:
                encoded.append(key.encode())
            except (UnicodeEncodeError, AttributeError):
                raise InputError(f"key number {number}, {key!r}, is not text that UTF-8 can hold") from None
        hashes = np.fromiter((key_hash(key) for key in encoded), dtype=U64, count=len(encoded))
        order = np.argsort(hashes, kind="stable")
        if len(set(encoded)) < len(encoded):
            ordered = sorted(encoded)
            twice = next(key for key, following in itertools.pairwise(ordered) if key == following)
            raise InputError(f"key {twice.decode()!r} appears twice in the vocabulary; keys must differ")
        offsets = np.zeros(len(encoded) + 1, dtype=I64)
        np.cumsum([len(key) for key in encoded], out=offsets[1:])
        joined = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        order_dtype = vocabulary_arrays(len(encoded), 0)["order"].dtype
        return cls({"bytes": joined, "offsets": offsets, "hashes": hashes[order], "order": order.astype(order_dtype)})

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def key(self, id_: int) -> str:
        """The key of an id in [0, len)."""
        return self._raw(id_).decode("utf-8", errors="replace")

    def _raw(self, id_: int) -> bytes:
        start, end = int(self._offsets[id_]), int(self._offsets[id_ + 1])
        if not 0 <= start <= end <= len(self._bytes):
            raise SnapshotError(f"the vocabulary is damaged: key {id_} lies at bytes {start} to {end}")
        return self._bytes[start:end].tobytes()

    def find(self, keys: Sequence[str]) -> npt.NDArray[np.int64]:
        """The id of each key, -1 where there is none: (len(keys),) int64."""
        encoded = [key.encode(errors="surrogatepass") for key in keys]
        hashes = np.fromiter((key_hash(key) for key in encoded), dtype=U64, count=len(encoded))
        places = np.searchsorted(self._hashes, hashes)
        return np.array([self._at(place, key, h) for place, key, h in zip(places, encoded, hashes, strict=True)], I64)

    def _at(self, place: int, key: bytes, wanted: np.uint64) -> int:
        while place < len(self._hashes) and self._hashes[place] == wanted:  # keys may share a hash
            id_ = int(self._order[place])
            if 0 <= id_ < len(self) and self._raw(id_) == key:
                return id_
            place += 1
        return -1
