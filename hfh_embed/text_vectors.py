"""Word vectors as text, the word2vec and GloVe way: a key and its numbers a line, in word2vec after a line with the sizes.

The numbers go to a nameless file in the system's temporary folder (TMPDIR), so that a text larger than memory can be read.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import InputError

__all__ = ["read_text"]

BLOCK_LINES = 4_096


def read_text(path: Path) -> tuple[npt.NDArray[np.float32], list[str]]:
    """The rows (N, D), mapped from a temporary file, and their keys; InputError names the line that does not fit."""
    with tempfile.TemporaryFile() as spool:
        keys, dim = _spool(path, spool)
        return np.memmap(spool, dtype=np.float32, mode="r", shape=(len(keys), dim)), keys


def _spool(path: Path, spool: BinaryIO) -> tuple[list[str], int]:
    """Write the numbers of all lines; the keys and how many numbers each has."""
    keys: list[str] = []
    block: list[npt.NDArray[np.float32]] = []
    dim = 0
    seen: set[str] = set()
    with open(path, encoding="utf-8", newline="\n") as file:
        try:
            for number, line in enumerate(file, start=1):
                fields = line.rstrip("\r\n ").split(" ")
                if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
                    dim = int(fields[1])
                    continue
                if not dim:
                    dim = _dim(fields)
                if dim < 1 or len(fields) <= dim:
                    raise InputError(
                        f"{path} line {number} has {len(fields) - 1} numbers; the others have {dim or 'some'}"
                    )
                key = " ".join(fields[:-dim])  # some keys contain spaces
                try:
                    block.append(np.array(fields[-dim:], dtype=np.float32))
                except ValueError:
                    raise InputError(f"{path} line {number}: the row of {key[:40]!r} is not {dim} numbers") from None
                if key in seen:
                    raise InputError(f"{path} line {number}: key {key[:40]!r} appears a second time; keys must differ")
                seen.add(key)
                keys.append(key)
                if len(block) == BLOCK_LINES:
                    spool.write(np.stack(block).data)
                    block = []
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text ({error.reason}); is it a binary word2vec file?") from None
    if not keys:
        raise InputError(f"{path} holds no word vectors; each line needs a key and its numbers, separated by spaces")
    if block:
        spool.write(np.stack(block).data)
    spool.flush()
    return keys, dim


def _dim(fields: list[str]) -> int:
    """How many numbers end the first line."""
    count = 0
    for field in reversed(fields[1:]):
        try:
            float(field)
        except ValueError:
            break
        count += 1
    return count
