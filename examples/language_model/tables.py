"""Tables of words at a given ratio: dense, HFH, and what else one could do with the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hfh_embed import nn as hnn
from hfh_embed.budget import PRESETS, Form, plan
from hfh_embed.errors import RatioError, SpecError

__all__ = ["METHODS", "BandedWords", "DenseWords", "HFHWords", "Method", "Words", "method_of"]

NAME = "words"
Counts = npt.NDArray[np.int64]


class Words(nn.Module):
    """A table of V words that serves both ends of a model. ``nbytes`` are all stored bytes."""

    nbytes: int

    def rows(self, ids: Tensor) -> Tensor:
        """Rows (n, D) of ids (n,)."""
        raise NotImplementedError


class DenseWords(Words):
    """A float32 matrix, whose gradient is sparse: a step touches the rows that it used, as a pool optimizer does."""

    def __init__(self, size: int, dim: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, dim) * std)
        self.nbytes = 4 * size * dim

    def rows(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight, sparse=True)


class HFHWords(Words):
    """One table on a pool of its own, or any neighbouring method that is a form of it."""

    def __init__(
        self, size: int, dim: int, std: float, ratio: float, counts: Counts, form: Form | None, seed: int
    ) -> None:
        super().__init__()
        pool = hnn.Pool.for_tables(
            {NAME: (size, dim)}, ratio, form=form, frequencies={NAME: counts}, least_uses=0, seed=seed, std=std
        )
        self.layer = hnn.HFHEmbedding(size, dim, pool=pool, name=NAME)
        self.nbytes = pool.nbytes

    def rows(self, ids: Tensor) -> Tensor:
        return self.layer(ids)


class BandedWords(Words):
    """Adaptive input and softmax tables (Baevski and Auli, arXiv 1809.10853): words by falling frequency in bands, each
    narrower than the one before, with a linear map to D. ``bits`` of the bands' values: 32, or fewer by rounding."""

    def __init__(self, size: int, dim: int, std: float, ratio: float, bits: int) -> None:
        super().__init__()
        self.ends, widths = _bands(size, dim, ratio, bits)
        firsts = [0, *self.ends[:-1]]
        form = Form(shared=False, private_bits=bits)
        self.bands = nn.ModuleList()
        for number, (first, end, width) in enumerate(zip(firsts, self.ends, widths, strict=True)):
            pool = hnn.Pool.for_tables(
                {f"band{number}": (end - first, dim)}, 1, form=replace(form, latent_dim=width), std=std
            )
            self.bands.append(hnn.HFHEmbedding(end - first, dim, pool=pool, name=f"band{number}"))
        self.nbytes = sum(band.nbytes for band in self.bands)

    def rows(self, ids: Tensor) -> Tensor:
        band = torch.bucketize(ids, torch.tensor(self.ends), right=True)
        places, parts, first = [], [], 0
        for number, (layer, end) in enumerate(zip(self.bands, self.ends, strict=True)):
            place = torch.nonzero(band == number).squeeze(1)
            if len(place):
                places.append(place)
                parts.append(layer(ids[place] - first))
            first = end
        back = torch.empty_like(ids)
        back[torch.cat(places)] = torch.arange(len(ids))
        return torch.cat(parts).index_select(0, back)


def _bands(size: int, dim: int, ratio: float, bits: int) -> tuple[list[int], list[int]]:
    """Ends of four bands, each four times as long as the one before, and the widths that fill the ratio's bytes.

    The first band is as wide as can be; then the widths fall as little as can be from one band to the next.
    """
    ends = [max(1, size // 4**3), max(2, size // 4**2), max(3, size // 4), size]
    lengths = np.diff([0, *ends])
    for widest in range(dim, 0, -1):
        for fall in np.arange(1, 4.01, 0.1):
            widths = [max(1, int(widest / fall**number)) for number in range(4)]
            stored = sum(
                n * math.ceil(width * bits / 8) + (4 * width * dim if width < dim else 0) + 4
                for n, width in zip(lengths, widths, strict=True)
            )
            if stored <= 4 * size * dim / ratio:
                return ends, widths
    raise RatioError(f"ratio {ratio:g} cannot be met by bands of {bits} bits; give a smaller one", nearest=1.0)


@dataclass(frozen=True)
class Method:
    """A way to keep words: how its table is made, the learning rate of its values, and the deviation of its initial rows."""

    title: str
    make: Callable[[int, int, float, float, Counts, int], Words]  # V, D, std, ratio, counts, seed
    rate: float = 4e-3
    std: float = 0.03


def _form(form: Form | None) -> Callable[[int, int, float, float, Counts, int], Words]:
    return lambda size, dim, std, ratio, counts, seed: HFHWords(size, dim, std, ratio, counts, form, seed)


def _narrow(bits: int) -> Callable[[int, int, float, float, Counts, int], Words]:
    """Rows of ``bits``-bit values alone, as wide as the ratio allows, with a linear map where that is less than D."""

    def make(size: int, dim: int, std: float, ratio: float, counts: Counts, seed: int) -> Words:
        for width in range(dim, 0, -1):
            form = Form(shared=False, private_bits=bits, latent_dim=width)
            try:
                plan({NAME: (size, dim)}, ratio, form=form)
            except RatioError:
                continue
            return HFHWords(size, dim, std, ratio, counts, form, seed)
        raise RatioError(
            f"ratio {ratio:g} leaves no {bits}-bit coefficient for each id; give a smaller one", nearest=1.0
        )

    return make


HASH_EMBEDDINGS = replace(PRESETS["hash_embeddings"], private_bits=8, bits=8)

METHODS: Mapping[str, Method] = {
    "dense": Method("dense", lambda size, dim, std, ratio, counts, seed: DenseWords(size, dim, std)),
    "hfh": Method("HFH", _form(None)),
    "line": Method("HFH, everything shared", _form(Form())),
    "line8": Method("HFH, eight words", _form(Form(num_hashes=8))),
    "narrow1": Method("1-bit rows", _narrow(1)),
    "narrow2": Method("2-bit rows", _narrow(2)),
    "narrow4": Method("4-bit rows", _narrow(4)),
    "narrow8": Method("8-bit rows", _narrow(8)),
    "narrow32": Method("low-dimensional float rows", _narrow(32)),
    "banded": Method(
        "adaptive bands", lambda size, dim, std, ratio, counts, seed: BandedWords(size, dim, std, ratio, 32)
    ),
    "banded4": Method(
        "adaptive bands, 4 bits",
        lambda size, dim, std, ratio, counts, seed: BandedWords(size, dim, std, ratio, 4),
    ),
    "hash-embeddings": Method("Hash Embeddings, 8 bits", _form(HASH_EMBEDDINGS)),
}
"""By name. Where a width follows from the ratio it is the largest that fits."""


def method_of(text: str) -> Method:
    """The method of this name, or ``form:exact_share=0.25,exact_bits=4`` for a form of one's own.

    Raises SpecError where neither is meant.
    """
    if text in METHODS:
        return METHODS[text]
    kind, _, choices = text.partition(":")
    kinds = {field.name: type(field.default) for field in fields(Form)}
    given = dict(choice.partition("=")[::2] for choice in choices.split(",") if choice)
    if kind != "form" or not given.keys() <= kinds.keys():
        raise SpecError(
            f"method {text!r} is not known; there are {', '.join(METHODS)}, and form:NAME=VALUE,... with {', '.join(kinds)}"
        )
    try:
        form = Form(**{name: _value(kinds[name], value) for name, value in given.items()})
    except ValueError as error:
        raise SpecError(f"method {text!r}: {error}") from None
    return Method(f"HFH, {choices}", _form(form))


def _value(kind: type[Any], text: str) -> Any:
    """A form's choice out of its text: a number, a name, true or false."""
    if kind is bool:
        if text not in ("true", "false"):
            raise SpecError(f"{text!r} is neither true nor false")
        return text == "true"
    return kind(text)
