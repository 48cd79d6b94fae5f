"""Word vectors as text, the word2vec and GloVe way: a key and its numbers a line, in word2vec after a line with the sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import InputError

__all__ = ["read_text"]


def read_text(path: Path) -> tuple[npt.NDArray[np.float32], list[str]]:
    """The rows (N, D) and their keys. A line is read at a time; InputError names the line that does not fit."""
    keys: list[str] = []
    blocks: list[npt.NDArray[np.float32]] = []
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
                if len(block) == 4096:
                    blocks.append(np.stack(block))
                    block = []
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text ({error.reason}); is it a binary word2vec file?") from None
    if block:
        blocks.append(np.stack(block))
    if not blocks:
        raise InputError(f"{path} holds no word vectors; each line needs a key and its numbers, separated by spaces")
    return np.concatenate(blocks), keys


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
