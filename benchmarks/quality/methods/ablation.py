"""One thing of the method changed at a time, everything at equal bytes; to be compared with the plain line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.quality.methods.base import Embedding, Shapes, descending
from benchmarks.quality.methods.forms import SIXTEEN_WORDS, Apart, Formed, Lean, line_form, private_form
from benchmarks.quality.methods.kept import keeping
from benchmarks.quality.methods.popular import Pruned
from benchmarks.quality.methods.spaces import Beside, DualSpace, MultiHop
from hfh_embed.budget import LEAST_USES, Form
from hfh_embed.nn.rounding import StoredValues
from hfh_embed.spec import Locality, Reconstruction

__all__ = ["ABLATION"]

Maker = Callable[[Shapes, float, int], Embedding]


def _spread(factor: float) -> Maker:
    """The plain line with other initial rows."""

    def made(shapes: Shapes, ratio: float, seed: int) -> Embedding:
        return Formed(dataclasses.replace(shapes, std=factor * shapes.std), ratio, seed, line_form())

    return made


def _words(num_hashes: int) -> Form:
    return Form(num_hashes=num_hashes, chunk_size=min(128, 512 // num_hashes))


def _free(num_hashes: int, chunk_size: int = 8, bits: int = 1) -> Form:
    return Form(num_hashes=num_hashes, chunk_size=chunk_size, locality=Locality.FREE, bits=bits)


def _network(reconstruction: Reconstruction, hidden: int = 0) -> Form:
    return Form(num_hashes=8, chunk_size=8, locality=Locality.FREE, reconstruction=reconstruction, hidden=hidden)


def _private(share: float, bits: int) -> Callable[[float, int], Form]:
    """This share of the bytes for coefficients of ``bits`` bits through a map of 16 latent entries."""

    def form(ratio: float, dim: int) -> Form:
        own = int(share * 32 * dim / ratio) // 8 * 8 // bits
        return line_form(latent_dim=16, private_dim=min(16, own), private_bits=bits if own else 0)

    return form


def _keeping(least_uses: int, form: Form = SIXTEEN_WORDS) -> Maker:
    return descending(partial(Formed, form=dataclasses.replace(form, least_uses=least_uses)))


ROWS = Form(shared=False, level_share=1, level_cover=1)
BY_USE = dataclasses.replace(ROWS, level_bits=0)


class Annealed(Formed):
    """Rows of as many bits as their use is worth, but not rounded in the first epochs."""

    def __init__(self, shapes: Shapes, ratio: float, seed: int, epochs: int) -> None:
        super().__init__(shapes, ratio, seed, dataclasses.replace(BY_USE, least_uses=LEAST_USES))
        self._epochs, self.settles = epochs, epochs + 1
        self._bits = {store: store.bits for store in self.modules() if isinstance(store, StoredValues)}

    def before_step(self, step: int, per_epoch: int) -> None:
        for store, bits in self._bits.items():
            store.bits = bits if step >= self._epochs * per_epoch else 32


ABLATION: Mapping[str, Mapping[str, Maker]] = {
    "masters of bfloat16": {
        "PoolAdam": partial(Lean, form=line_form(), moments=True),
        "PoolSGD": partial(Lean, form=line_form(), moments=False),
    },
    "U, words of one line": {f"words, U = {u}": partial(Formed, form=_words(u)) for u in (1, 2, 4)},
    "U, free addresses": {f"free, U = {u}, Z = 8": partial(Formed, form=_free(u)) for u in (1, 2, 4, 8, 16)},
    "Z": {f"free, U = 8, Z = {z}": partial(Formed, form=_free(8, z)) for z in (1, 32)},
    "locality": {
        "one line, U = 8, Z = 8": partial(Formed, form=Form(num_hashes=8, chunk_size=8, locality=Locality.LINE)),
        "two lines, U = 8, Z = 8": partial(
            Formed, form=Form(num_hashes=8, chunk_size=8, locality=Locality.LINE, lines=2)
        ),
    },
    "bits of the pool": {
        f"free, U = 4, {bits} bits": partial(Formed, form=_free(4, 8, bits)) for bits in (2, 4, 8, 32)
    },
    "reconstruction": {
        "bilinear": partial(Formed, form=_network(Reconstruction.BILINEAR)),
        "entry-wise network of 4": partial(Formed, form=_network(Reconstruction.MLP, 4)),
        "entry-wise network of 8": partial(Formed, form=_network(Reconstruction.MLP, 8)),
        "entry-wise network of 16": partial(Formed, form=_network(Reconstruction.MLP, 16)),
        "network of 8 on the row": partial(Formed, form=line_form(residual_hidden=8)),
        "network of 32 on the row": partial(Formed, form=line_form(residual_hidden=32)),
        "map from R = 8": partial(Formed, form=line_form(latent_dim=8)),
        "map from R = 24": partial(Formed, form=line_form(latent_dim=24)),
    },
    "exact rows by frequency": {
        f"{share:.0%} exact rows, {bits} bits": partial(Formed, form=line_form(exact_share=share, exact_bits=bits))
        for share, bits in ((0.1, 4), (0.3, 1), (0.3, 2), (0.3, 8), (0.5, 4))
    }
    | {"a quarter of the ids in levels": partial(Formed, form=line_form(level_share=0.5))},
    "sixteen words by gradient descent, kept ids": {
        "one pool, all ids": _keeping(0),
        **{f"ids used {uses} times": _keeping(uses) for uses in (2, 5, 10, 20, 50)},
    },
    "kept ids by gradient descent": {
        "bits by use": _keeping(LEAST_USES, BY_USE),
        "bits by use, ids used 5 times": _keeping(5, BY_USE),
        "bits by use, ids used 20 times": _keeping(20, BY_USE),
        "two bits, one width": _keeping(LEAST_USES, dataclasses.replace(ROWS, level_count=1, level_bits=2)),
        "four bits, widths by use": _keeping(LEAST_USES, dataclasses.replace(ROWS, level_count=4, level_bits=4)),
        "bits by use, an epoch unrounded": descending(partial(Annealed, epochs=1)),
        "bits by use, three epochs unrounded": descending(partial(Annealed, epochs=3)),
    },
    "the paper's extensions": {"dual space": DualSpace, "multiple hops": MultiHop},
    "single coefficients pruned": {
        "line, and a third for pruned coefficients": partial(
            Beside, make=partial(Formed, form=line_form()), other=Pruned, share=1 / 3
        ),
        "pruned coefficients of kept ids": keeping(Pruned),
    },
    "pools, sixteen words by gradient descent": {
        "one pool, all ids": _keeping(0),
        "a pool for each large field": descending(Apart),
    },
    "private coefficients": {
        "half private, 1 bit": partial(Formed, form=_private(0.5, 1)),
        "half private, 2 bits": partial(Formed, form=_private(0.5, 2)),
        "four fifths private, 1 bit": partial(Formed, form=_private(0.8, 1)),
        "four fifths private, 2 bits": partial(Formed, form=_private(0.8, 2)),
        "mix + map + network": partial(Formed, form=partial(private_form, latent_dim=16, residual_hidden=16)),
    },
    "initial rows": {f"initial rows × {factor:g}": _spread(factor) for factor in (0.25, 0.5, 2, 4)},
}
"""Group -> method's name -> how to make it."""
