"""A small recurrent language model over any table of words, its two losses and its perplexity.

The table serves both ends. The output's bias is a smooth function of a word's rank, since ranks follow frequency: 64 values
instead of one for each word, the same for every method.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hfh_embed import nn as hnn
from language_model.tables import HFHWords, Words

__all__ = ["KNOTS", "Candidates", "LanguageModel", "Negatives", "Whole", "continuation", "cross_entropy"]

KNOTS = 64
TILE = 512


class RankBias(nn.Module):
    """log P(word) at first, linear in log rank between its knots."""

    place: Tensor
    share: Tensor

    def __init__(self, counts: npt.NDArray[np.int64]) -> None:
        super().__init__()
        at = np.log1p(np.arange(len(counts)))
        knots = np.linspace(0, at[-1], KNOTS)
        place = np.minimum((at / at[-1] * (KNOTS - 1)).astype(np.int64), KNOTS - 2)
        wanted = np.log((counts + 1) / (counts + 1).sum())
        # np.interp needs ranks without the two that are not words.
        self.knots = nn.Parameter(torch.from_numpy(np.interp(knots, at[1:], wanted[1:])).float())
        self.register_buffer("place", torch.from_numpy(place), persistent=False)
        share = (at - knots[place]) / (knots[1] - knots[0])
        self.register_buffer("share", torch.from_numpy(share).float(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """The biases of ids (n,): (n,)."""
        place, share = self.place[ids], self.share[ids]
        return self.knots[place] * (1 - share) + self.knots[place + 1] * share


class LanguageModel(nn.Module):
    """Rows of words, a GRU, a linear map back to D; logits are products with the same rows."""

    def __init__(self, words: Words, dim: int, hidden: int, counts: npt.NDArray[np.int64]) -> None:
        super().__init__()
        self.words = words
        self.bias = RankBias(counts)
        self.input_gain = math.sqrt(dim)
        self.body = nn.GRU(dim, hidden, batch_first=True)
        self.out = nn.Linear(hidden, dim)

    def forward(self, rows: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is compared with words after each of the words with rows (S, T, D), as (S * T, D), and the state to go on from."""
        after, state = self.body(rows * self.input_gain, state)
        return self.out(after).flatten(0, 1), state


class Candidates:
    """The words that a step's softmax is taken over, and what each of them stands for (log weight)."""

    def __init__(self, ids: Tensor, log_weight: Tensor, place: Tensor) -> None:
        self.ids, self.log_weight, self.place = ids, log_weight, place


class Negatives:
    """Draws candidates: the most frequent words always, the others with probability by frequency, weighed by its inverse.

    The sum over the candidates is an unbiased estimate of the softmax's whole denominator.
    """

    def __init__(self, counts: npt.NDArray[np.int64], always: int, drawn: int, seed: int) -> None:
        self.size, self.always, self.drawn = len(counts), min(always, len(counts)), drawn
        self.generator = torch.Generator().manual_seed(seed)
        tail = np.power(counts[self.always :] + 1.0, 0.75)
        share = tail / tail.sum() if len(tail) else tail
        self.cumulative = torch.from_numpy(np.cumsum(share))
        self.log_weight = torch.from_numpy(-np.log(-np.expm1(drawn * np.log1p(-np.minimum(share, 1 - 1e-9))))).float()

    def draw(self) -> Candidates:
        """Candidates for one step, each once."""
        place = torch.full((self.size,), -1)
        ids = torch.arange(self.always)
        weight = torch.zeros(self.always)
        if len(self.cumulative):
            at = torch.rand(self.drawn, generator=self.generator, dtype=torch.float64)
            tail = torch.searchsorted(self.cumulative, at).clamp_max(len(self.cumulative) - 1).unique()
            ids, weight = torch.cat((ids, tail + self.always)), torch.cat((weight, self.log_weight[tail]))
        place[ids] = torch.arange(len(ids))
        return Candidates(ids, weight, place)

    def loss(self, model: LanguageModel, ids: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean cross entropy of each next word in ids (S, T + 1), over the candidates and the target, and the state after them.

        A word's row is computed once, whatever it is needed for.
        """
        among, targets = self.draw(), ids[:, 1:].reshape(-1)
        needed = torch.cat((ids.reshape(-1), among.ids))
        distinct, place = torch.unique(needed, return_inverse=True)
        rows = model.words.rows(distinct)
        of_text, of_candidates = place[: ids.numel()].view(ids.shape), place[ids.numel() :]
        after, state = model(nn.functional.embedding(of_text[:, :-1], rows), state)
        bias = model.bias(among.ids) + among.log_weight
        logits = torch.addmm(bias, after, rows.index_select(0, of_candidates).T)
        own = (after * rows.index_select(0, of_text[:, 1:].reshape(-1))).sum(dim=1) + model.bias(targets)
        column = among.place[targets]
        twice = torch.nonzero(column >= 0).squeeze(1)
        logits = logits.index_put((twice, column[twice]), torch.tensor(-math.inf))
        every = torch.cat((own[:, None], logits), dim=1)
        return nn.functional.cross_entropy(every, torch.zeros(len(targets), dtype=torch.long)), state


class Whole:
    """The softmax over the whole vocabulary: tiled by the head where the words are HFH, else all logits at once.

    The bias stays at the words' frequencies.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)  # draws nothing, and is kept as that of Negatives is

    def loss(self, model: LanguageModel, ids: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """As :meth:`Negatives.loss`."""
        words, targets = ids[:, :-1], ids[:, 1:].reshape(-1)
        after, state = model(model.words.rows(words.reshape(-1)).view(*words.shape, -1), state)
        if isinstance(model.words, HFHWords):
            return head_of(model).loss(after, targets), state
        every = torch.arange(len(model.bias.place))
        logits = torch.addmm(model.bias(every).detach(), after, model.words.rows(every).T)
        return nn.functional.cross_entropy(logits, targets), state


def head_of(model: LanguageModel) -> hnn.VocabularyHead:
    """The output layer on the same table, with the model's bias as it is now."""
    assert isinstance(model.words, HFHWords)
    layer = model.words.layer
    with torch.no_grad():
        bias = model.bias(torch.arange(layer.num_embeddings))
    head = hnn.VocabularyHead(layer.num_embeddings, layer.embedding_dim, tie=layer, bias=bias)
    assert head.bias is not None
    head.bias.requires_grad_(False)
    return head


@torch.no_grad()
def continuation(model: LanguageModel, ids: list[int], count: int, generator: torch.Generator) -> list[int]:
    """``count`` words after ``ids``, each drawn from the likeliest ones that hold nine tenths of the probability."""
    head, state, written = head_of(model), None, list(ids)
    rows = model.words.rows(torch.tensor(ids))
    for _ in range(count):
        after, state = model(rows[None], state)
        word = head.sample(after[-1:], temperature=0.8, top_p=0.9, generator=generator)
        written.append(int(word))
        rows = model.words.rows(word)
    return written[len(ids) :]


@torch.no_grad()
def cross_entropy(model: LanguageModel, after: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each target over the whole vocabulary, (n,), by tiles: neither V x D nor n x V is held."""
    size = len(model.bias.place)
    own = (after * model.words.rows(targets)).sum(dim=1) + model.bias(targets)
    most, total = own.clone(), torch.zeros_like(own)
    for first in range(0, size, TILE):
        ids = torch.arange(first, min(first + TILE, size))
        logits = torch.addmm(model.bias(ids), after, model.words.rows(ids).T)
        top = torch.maximum(most, logits.amax(dim=1))
        total = total * (most - top).exp() + logits.sub_(top[:, None]).exp_().sum(dim=1)
        most = top
    return total.log() + most - own
