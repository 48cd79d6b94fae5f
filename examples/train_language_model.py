"""Train a word-level language model on novels: its words dense and 10, 32 and 100 times smaller; serve the smallest.

    python examples/train_language_model.py                     about half an hour on two cores; Ctrl-C and go on as you like
    python examples/train_language_model.py --sample            seconds, on 400 kB of the text
    python examples/train_language_model.py --methods hfh narrow1 --ratios 32
    python examples/train_language_model.py --bpe 32000         pieces of words instead of words

A GRU of 128 units over 107,811 words has 99 % of its weights in the vocabulary's matrix, which serves both ends. The only thing
that differs between the runs is what this matrix is made of: floats, or rows computed from a pool.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from language_model.model import LanguageModel, continuation
from language_model.report import plot_curves
from language_model.tables import METHODS, NAME, HFHWords, method_of
from language_model.text import DATA, EOS, Corpus, load
from language_model.training import Run, Settings, Stopped

import hfh_embed
from hfh_embed import nn as hnn
from hfh_embed.errors import HFHError, InputError
from hfh_embed.plots import FORMATS
from hfh_embed.verbs.base import Progress
from service.client import Client

SAMPLE = {"tokens": 30_000, "valid_tokens": 1_024, "curve_tokens": 512, "streams": 16, "curve_points": 2}


def serve_and_ask(snapshot: Path, words: list[str]) -> np.ndarray:
    """Start the service on the snapshot, fetch the rows of words by HTTP, stop the service."""
    command = [sys.executable, "-m", "hfh_embed.cli", "serve", str(snapshot), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = next(word for line in server.stdout for word in line.split() if word.startswith("http://"))
            with Client(url) as client:
                return client.lookup(NAME, keys=words)
        finally:
            server.terminate()


def train(settings: Settings, corpus: Corpus, args: argparse.Namespace) -> tuple[Run, dict[str, object]]:
    """One run with a bar; goes on from its checkpoint where there is one."""
    folder = args.kept / "checkpoints" / ("sample" if args.sample else f"bpe{args.bpe}" if args.bpe else "words")
    run = Run(settings, corpus, folder, fresh=args.fresh)
    if run.progress.step:
        print(f"going on from step {run.progress.step:,} of {settings.steps:,}", flush=True)
    what = f"{settings.method[:16]} {settings.ratio:g}x"
    with Progress() as progress:
        return run, run.go(lambda: progress(run.progress.step, settings.steps, what))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of novels100 (default: %(default)s)")
    parser.add_argument(
        "--kept", type=Path, default=Path("var/language_model"), help="folder for checkpoints (default: %(default)s)"
    )
    parser.add_argument("--sample", action="store_true", help="the sample text: seconds instead of minutes")
    parser.add_argument(
        "--bpe", type=int, default=0, metavar="PIECES", help="train a BPE vocabulary of so many pieces first"
    )
    parser.add_argument(
        "--methods", nargs="+", default=["dense", "hfh"], help=f"of {', '.join(METHODS)} (default: dense hfh)"
    )
    parser.add_argument("--ratios", type=float, nargs="+", default=[10, 32, 100], help="default: 10 32 100")
    parser.add_argument("--tokens", type=int, help=f"training tokens, each seen once (default: {Settings.tokens:,})")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="learning rate of the words' values (default: the method's)"
    )
    parser.add_argument(
        "--whole", action="store_true", help="train on the whole softmax, not on drawn words: fifty times slower"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="begin anew, whatever checkpoints there are")
    parser.add_argument("--plot", type=Path, help="where to draw perplexity over time (.png, .svg or .pdf)")
    parser.add_argument("-o", "--output", type=Path, help="where to keep the snapshot of the last HFH run")
    args = parser.parse_args()
    choices = {"seed": args.seed, "rate": args.rate, **(SAMPLE if args.sample else {})}
    if args.whole:
        choices["drawn"] = 0
    if args.tokens:
        choices["tokens"] = args.tokens
    if args.plot and args.plot.suffix not in FORMATS:
        raise InputError(f"the plot {str(args.plot)!r} must end in one of {', '.join(FORMATS)}")
    runs = []
    for method in args.methods:
        method_of(method)
        runs += [
            Settings(method=method, ratio=ratio, **choices) for ratio in ([1.0] if method == "dense" else args.ratios)
        ]
    corpus = load(args.data, sample=args.sample, bpe=args.bpe, kept=args.kept)
    print(
        f"{len(corpus.train):,} tokens of text, {len(corpus.words):,} words, {runs[0].tokens:,} tokens to train on",
        flush=True,
    )
    rows, last = [], None
    for settings in runs:
        run, row = train(settings, corpus, args)
        rows.append(row | {"title": method_of(settings.method).title})
        print(
            f"{rows[-1]['title']:<28} {settings.ratio:>4g}x {row['nbytes']:>12,} bytes   perplexity {row['perplexity']:7.2f}   "
            f"{row['tokens_per_s']:>7,} tokens/s   peak {row['peak_bytes'] / 1e6:,.0f} MB",
            flush=True,
        )
        if isinstance(run.model.words, HFHWords):
            last = run.model
    if args.plot:
        plot_curves(rows, args.plot)
    if last is not None:
        show(last, corpus, args)


def show(model: LanguageModel, corpus: Corpus, args: argparse.Namespace) -> None:
    """Let the model write, save the words' table, serve it, and compare what is served with what was trained."""
    begin = corpus.valid[len(corpus.valid) // 2 :][:12].tolist()
    more = continuation(model, begin, 24, torch.Generator().manual_seed(args.seed))
    print(
        " ".join(corpus.words[number] for number in begin), "[...]", " ".join(corpus.words[number] for number in more)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = args.output or Path(folder) / "words.hfh"
        hnn.save(model.words, path, vocabularies={NAME: corpus.words})
        print(
            f"saved {path.name}: {path.stat().st_size:,} bytes with its words, version {hfh_embed.inspect(path).version}"
        )
        words = list(corpus.words[EOS + 1 : EOS + 4])
        served = serve_and_ask(path, words)
    with torch.no_grad():
        trained = model.words.rows(torch.arange(EOS + 1, EOS + 4)).numpy()
    close = bool(np.allclose(served, trained, rtol=1e-5, atol=1e-6))
    print(f"served rows of {' '.join(words)} equal the trained ones: {close}")


if __name__ == "__main__":
    try:
        main()
    except Stopped as stopped:
        print(f"\nstopped; {stopped} keeps what was done, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except (HFHError, OSError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
