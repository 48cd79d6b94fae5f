"""Training with checkpoints that survive a kill, and what is measured on the way."""

from __future__ import annotations

import contextlib
import math
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfh_embed import nn as hnn
from hfh_embed.container import replacing
from language_model.model import LanguageModel, Negatives, Whole, cross_entropy
from language_model.tables import DenseWords, HFHWords, method_of
from language_model.text import UNKNOWN, Corpus, streams

__all__ = ["Run", "Settings", "Stopped"]

VALID_STREAMS = 32


@dataclass(frozen=True)
class Settings:
    """All that decides a run's outcome."""

    method: str = "dense"
    ratio: float = 1.0
    seed: int = 0
    tokens: int = 3_000_000
    dim: int = 128
    hidden: int = 128
    streams: int = 64
    length: int = 16
    rate: float = 0.0  # of the table's values; 0: the method's own
    std: float = 0.0  # of initial rows; 0: the method's own
    net_rate: float = 2e-3
    always: int = 512
    drawn: int = 512  # 0: the loss is over the whole vocabulary
    valid_tokens: int = 32_000
    curve_tokens: int = 4_096
    curve_points: int = 5

    @property
    def name(self) -> str:
        """A file's name for this run."""
        method = re.sub(r"[^\w.=-]+", "-", self.method)
        return f"{method}-{self.ratio:g}x-seed{self.seed}-rate{self.table_rate:g}-std{self.row_std:g}"

    @property
    def table_rate(self) -> float:
        """The learning rate of the table's values."""
        return self.rate or method_of(self.method).rate

    @property
    def row_std(self) -> float:
        """The standard deviation of initial rows."""
        return self.std or method_of(self.method).std

    @property
    def steps(self) -> int:
        return self.tokens // (self.streams * self.length)


class Stopped(Exception):  # noqa: N818
    """Training was interrupted; its checkpoint is where it says."""


@dataclass
class Progress:
    """What a run has measured so far. Seconds are the processor's, so that other work on the machine does not count."""

    step: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


class Run:
    """One model, from its first step or from its checkpoint, to its perplexity."""

    def __init__(self, settings: Settings, corpus: Corpus, folder: Path, fresh: bool = False) -> None:
        self.settings, self.corpus = settings, corpus
        self.checkpoint = folder / f"{settings.name}.pt"
        torch.manual_seed(settings.seed)
        method = method_of(settings.method)
        size = len(corpus.words)
        words = method.make(size, settings.dim, settings.row_std, settings.ratio, corpus.counts, settings.seed)
        self.model = LanguageModel(words, settings.dim, settings.hidden, corpus.counts)
        self.softmax = (
            Negatives(corpus.counts, settings.always, settings.drawn, settings.seed)
            if settings.drawn
            else Whole(settings.seed)
        )
        self.optimizers = _optimizers(self.model, settings)
        self.train = streams(corpus.train, settings.streams, settings.steps * settings.length)
        self.progress = Progress()
        self.state: Tensor | None = None
        if self.checkpoint.exists() and not fresh:
            self._resume()

    def go(self, report: Callable[[], None] = lambda: None, stop_at: int | None = None) -> dict[str, Any]:
        """Train to the end and return what was measured. On Ctrl-C or SIGTERM the step is finished and Stopped raised."""
        settings, progress = self.settings, self.progress
        points = {round(settings.steps * (n + 1) / settings.curve_points) for n in range(settings.curve_points)}
        reset_peak()
        with _asked_to_stop() as asked:
            try:
                while not (progress.curve and progress.curve[-1]["step"] == settings.steps):
                    if progress.step in points and not (progress.curve and progress.curve[-1]["step"] == progress.step):
                        self._measure(asked)
                        self.save()
                        continue
                    if asked.is_set() or progress.step == stop_at:
                        raise Stopped
                    began = time.process_time()
                    self._step()
                    progress.seconds += time.process_time() - began
                    report()
            except Stopped:
                self.save()
                raise Stopped(str(self.checkpoint)) from None
        stored = self.model.words.nbytes
        return {
            "method": settings.method,
            "ratio": settings.ratio,
            "seed": settings.seed,
            "nbytes": stored,
            "real_ratio": round(4 * settings.dim * len(self.corpus.words) / stored, 2),
            "perplexity": round(progress.curve[-1]["perplexity"], 3),
            "tokens_per_s": round(progress.step * settings.streams * settings.length / progress.seconds),
            "peak_bytes": progress.peak_bytes,
            "curve": [{key: round(value, 2) for key, value in point.items()} for point in progress.curve],
            "settings": asdict(settings) | {"rate": settings.table_rate, "std": settings.row_std},
        }

    def _measure(self, asked: threading.Event) -> None:
        """Add a point to the curve: the last one over more tokens, which need more memory than training at no time."""
        settings, progress = self.settings, self.progress
        progress.peak_bytes = max(progress.peak_bytes, peak_bytes())
        tokens = settings.valid_tokens if progress.step == settings.steps else settings.curve_tokens
        perplexity = self.perplexity(tokens, asked)
        progress.curve.append({"step": progress.step, "seconds": progress.seconds, "perplexity": perplexity})

    def _step(self) -> float:
        settings, at = self.settings, self.progress.step * self.settings.length
        ids = torch.from_numpy(self.train[:, at : at + settings.length + 1].astype(np.int64))
        factor = _schedule(self.progress.step, settings.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_rate"] * factor
            optimizer.zero_grad()
        loss, state = self.softmax.loss(self.model, ids, self.state)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*self.model.body.parameters(), *self.model.out.parameters()], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.state = state.detach()
        self.progress.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def perplexity(self, tokens: int, asked: threading.Event | None = None) -> float:
        """Over ``tokens`` validation tokens from all of its novels, unknown words not counted."""
        length = tokens // VALID_STREAMS
        ids = torch.from_numpy(streams(self.corpus.valid, VALID_STREAMS, length).astype(np.int64))
        state, total, count = None, 0.0, 0
        for at in range(0, length, 32):
            if asked is not None and asked.is_set():
                raise Stopped
            part = ids[:, at : at + 33]
            rows = self.model.words.rows(part[:, :-1].reshape(-1)).view(VALID_STREAMS, -1, self.settings.dim)
            after, state = self.model(rows, state)
            targets = part[:, 1:].reshape(-1)
            known = targets != UNKNOWN
            losses = cross_entropy(self.model, after[known], targets[known])
            total += float(losses.double().sum())
            count += len(losses)
        return math.exp(total / count)

    def save(self) -> None:
        """Write the checkpoint, so that a kill at any moment leaves the old or the new one."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        everything = {
            "settings": asdict(self.settings),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "state": self.state,
            "random": [torch.get_rng_state(), self.softmax.generator.get_state()],
            "progress": asdict(self.progress),
        }
        with replacing(self.checkpoint) as file:
            torch.save(everything, file)

    def _resume(self) -> None:
        everything = torch.load(self.checkpoint, weights_only=True)
        if everything["settings"] != asdict(self.settings):
            raise ValueError(
                f"{self.checkpoint} is of a run with other settings; begin anew with --fresh, or ask for those: {everything['settings']}"
            )
        self.model.load_state_dict(everything["model"])
        for optimizer, state in zip(self.optimizers, everything["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.state = everything["state"]
        torch.set_rng_state(everything["random"][0])
        self.softmax.generator.set_state(everything["random"][1])
        self.progress = Progress(**everything["progress"])


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Set by Ctrl-C and SIGTERM while the context lasts, so that no step is left half done."""
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _schedule(step: int, steps: int) -> float:
    """The learning rate's factor: up over the first 50 steps, then a cosine down to nothing."""
    return min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _optimizers(model: LanguageModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """Adam for everything; for the lines of a pool the library's own, which does not read the whole pool at every step."""
    table, made = model.words, []
    values = list(table.parameters())
    pool = table.layer.pool if isinstance(table, HFHWords) else None
    if pool is not None and pool.spec is not None:
        made.append(hnn.PoolAdam(pool, lr=settings.table_rate))
        values = [value for value in values if value is not pool.store.values]
    if isinstance(table, DenseWords):
        made.append(torch.optim.SparseAdam(values, lr=settings.table_rate))
        values = []
    mine = {id(value) for value in table.parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if id(p) not in mine], "lr": settings.net_rate}
    ]
    if values:
        groups.append({"params": values, "lr": settings.table_rate})
    made.append(torch.optim.Adam(groups, fused=True))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["full_rate"] = group["lr"]
    return made


def reset_peak() -> None:
    """Let the process' peak memory begin anew, where the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("peak memory will include what came before", file=sys.stderr)


def peak_bytes() -> int:
    """The most memory that this process had since :func:`reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
