"""novels100 as numbers: tokens of 98 English novels over all lower-cased types of the training part, or over BPE pieces.

Ids are ranks: 0 is the unknown word, 1 the end of a line, then the types by falling frequency in the whole training part.
What was read is kept in a folder, so that only the first run takes the half minute of reading.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hfh_embed.container import replacing

__all__ = ["DATA", "EOS", "UNKNOWN", "Corpus", "load", "streams"]

DATA = Path(__file__).resolve().parents[3] / "shared" / "datasets" / "novels100"
UNKNOWN, EOS = 0, 1
TOKEN = re.compile(r"[A-Za-zÀ-ÿ]+(?:['’-][A-Za-zÀ-ÿ]+)*|\d+|[^\w\s]")
SAMPLE_LINES = 20  # every so many lines of the sample are the validation part

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Corpus:
    """Token ids of both parts, the word of each id, and how often each occurs in the whole training part."""

    train: Ints
    valid: Ints
    words: tuple[str, ...]
    counts: npt.NDArray[np.int64]


def load(folder: Path = DATA, *, sample: bool = False, bpe: int = 0, kept: Path | None = None) -> Corpus:
    """The corpus of a data folder.

    Args:
        folder: has train.txt.zst and valid.txt.zst, or sample.txt for ``sample``.
        sample: the 400 kB sample, every 20th line of which validates.
        bpe: pieces of a byte-level BPE vocabulary trained on the spot instead of words.
        kept: folder for what was read, to be quick the next time.

    Raises:
        FileNotFoundError: says which file is missing. ModuleNotFoundError: ``bpe`` without the package tokenizers.
    """
    names = ("sample.txt",) if sample else ("train.txt.zst", "valid.txt.zst")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}; give --data FOLDER with the novels100 files"
        )
    if bpe and importlib.util.find_spec("tokenizers") is None:
        raise ModuleNotFoundError("BPE needs the package tokenizers; install it with: pip install 'hfh-embed[text]'")
    place = None if kept is None else kept / f"{'sample' if sample else 'novels100'}-{f'bpe{bpe}' if bpe else 'words'}"
    if place is not None and (place / "counts.npy").is_file():
        return _read(place)
    train, valid = _parts(folder, sample)
    corpus = _pieces(train, valid, bpe) if bpe else _words(train, valid)
    if place is not None:
        _keep(corpus, place)
    return corpus


def _parts(folder: Path, sample: bool) -> tuple[list[str], list[str]]:
    """Lines of text for training and validation."""
    if sample:
        lines = (folder / "sample.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        return (
            [line for number, line in enumerate(lines) if number % SAMPLE_LINES],
            lines[::SAMPLE_LINES],
        )
    import pyarrow as pa

    texts = (
        pa.input_stream(folder / name, compression="zstd").read().decode()
        for name in ("train.txt.zst", "valid.txt.zst")
    )
    train, valid = (text.split("\n") for text in texts)
    return train, valid


def _tokens(lines: list[str]) -> Iterator[str | None]:
    """Lower-cased tokens, None at the end of each line that has any."""
    for line in lines:
        if found := TOKEN.findall(line):
            yield from (token.lower() for token in found)
            yield None


def _words(train: list[str], valid: list[str]) -> Corpus:
    counted = Counter(_tokens(train))
    ends = counted.pop(None, 0)
    ranked = sorted(counted.items(), key=lambda item: (-item[1], str(item[0])))
    words = ("<unk>", "<eos>", *(str(word) for word, _ in ranked))
    ids: dict[str | None, int] = {None: EOS} | {word: number for number, word in enumerate(words) if number > EOS}
    numbered: Callable[[list[str]], Ints] = lambda lines: np.fromiter(  # noqa: E731
        (ids.get(token, UNKNOWN) for token in _tokens(lines)), dtype=np.int32
    )
    counts = np.array([0, ends, *(count for _, count in ranked)], dtype=np.int64)
    return Corpus(numbered(train), numbered(valid), words, counts)


def _pieces(train: list[str], valid: list[str], size: int) -> Corpus:
    """Byte-level BPE, its pieces renumbered by falling frequency; a line's end is a token here too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        train, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    names = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]

    def encoded(lines: list[str]) -> Ints:
        out = []
        for first in range(0, len(lines), 10_000):
            batch = [line for line in lines[first : first + 10_000] if line.strip()]
            for encoding in tokenizer.encode_batch_fast(batch):
                out.append(np.array([*encoding.ids, -1], dtype=np.int32))
        return np.concatenate(out)

    raw, raw_valid = encoded(train), encoded(valid)
    counted = np.bincount(raw[raw >= 0], minlength=len(names))
    order = np.argsort(-counted, kind="stable")
    rank = np.empty(len(names) + 1, dtype=np.int32)
    rank[order] = np.arange(len(names), dtype=np.int32) + EOS + 1
    rank[-1] = EOS  # where -1 points
    counts = np.concatenate(([0, (raw < 0).sum()], counted[order])).astype(np.int64)
    words = ("<unk>", "<eos>", *(names[number] for number in order))
    return Corpus(rank[raw], rank[raw_valid], words, counts)


def _keep(corpus: Corpus, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    with replacing(place / "words.json") as file:
        file.write(json.dumps(corpus.words).encode())
    for name in ("train", "valid", "counts"):  # counts last: it says that all is there
        with replacing(place / f"{name}.npy") as file:
            np.save(file, getattr(corpus, name))


def _read(place: Path) -> Corpus:
    words = tuple(json.loads((place / "words.json").read_text()))
    train, valid, counts = (np.load(place / f"{name}.npy") for name in ("train", "valid", "counts"))
    return Corpus(train, valid, words, counts)


def streams(tokens: Ints, count: int, length: int) -> Ints:
    """``count`` stretches of ``length`` + 1 tokens that begin evenly spread over a text: (count, length + 1) int32.

    Raises ValueError where the text is shorter than that.
    """
    if count * (length + 1) > len(tokens):
        raise ValueError(
            f"{count} streams of {length:,} tokens are asked of a text of {len(tokens):,}; ask for fewer tokens"
        )
    starts = np.arange(count) * (len(tokens) // count)
    return np.stack([tokens[start : start + length + 1] for start in starts])
