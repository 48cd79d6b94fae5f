"""Train a recommender with its tables dense, 10 and 100 times smaller; save the smaller tables, serve them, ask for rows.

    python examples/train_recommender.py                 a few minutes on two cores
    python examples/train_recommender.py --sample        seconds, on the sample data

The model is a small DLRM: one embedding for each of 21 id fields, their pairwise dot products, a network on top. The only
thing that differs between the runs is what the embeddings are made of: ``nn.Embedding``, or ``HFHEmbedding`` with one ratio for all
fields, which is told how often training uses each id. All tables are trained by plain gradient descent, which is better here than Adam.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
import torch
from completejourney import DATA, FIELDS, load
from recommender import DIM, Recommender, build, train

import hfh_embed
from hfh_embed import nn as hnn
from service.client import Client

NETWORK_RATE, TABLE_RATE = 4e-3, 160.0
"""Learning rates of Adam for the network and of gradient descent for the tables. The latter is large as few rows of a batch use an id."""


def serve_and_ask(snapshot: Path, ids: np.ndarray) -> np.ndarray:
    """Start the service on the snapshot, fetch rows of the product table by HTTP, stop the service."""
    command = [sys.executable, "-m", "hfh_embed.cli", "serve", str(snapshot), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = next(word for line in server.stdout for word in line.split() if word.startswith("http://"))
            with urllib.request.urlopen(f"{url}/readyz", timeout=30):
                pass
            with Client(url) as client:
                return client.lookup("prod", ids)
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with events.parquet (default: %(default)s)")
    parser.add_argument("--sample", action="store_true", help="the sample data: seconds instead of minutes")
    parser.add_argument("--ratios", type=float, nargs="*", default=[10, 100], help="default: 10 100")
    parser.add_argument("--epochs", type=int, default=2, help="at most; stops early (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="where to keep the last snapshot")
    args = parser.parse_args()
    splits, sizes = load(args.data, args.sample)
    print(f"{len(splits['train'].ids):,} training rows, {sum(sizes.values()):,} ids in {len(sizes)} fields", flush=True)
    uses = {f: np.bincount(splits["train"].ids[:, k], minlength=sizes[f]) for k, f in enumerate(FIELDS)}
    model = None
    for ratio in (None, *args.ratios):
        torch.manual_seed(args.seed)
        name = "dense" if ratio is None else f"HFH {ratio:g}x"
        model = Recommender(build(sizes, ratio, uses=uses))
        stored = 4 * DIM * sum(sizes.values()) if ratio is None else model.tables["prod"].pool.nbytes
        outcome = train(model, splits, args.epochs, NETWORK_RATE, name, descent=TABLE_RATE)
        print(
            f"\r{name:<10} tables {stored:>12,} bytes   test AUC {outcome.test:.4f}   trained in {outcome.seconds:.0f} s",
            flush=True,
        )
    if not args.ratios:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = args.output or Path(folder) / "recommender.hfh"
        hnn.save(model.tables, path)
        print(f"saved {path.name}: {path.stat().st_size:,} bytes, version {hfh_embed.inspect(path).version}")
        ids = np.array([1, 2, 3])
        served = serve_and_ask(path, ids)
        trained = model.tables["prod"](torch.from_numpy(ids)).detach().numpy()
        print(f"served rows of products {ids.tolist()} equal the trained ones: {bool((served == trained).all())}")


if __name__ == "__main__":
    main()
