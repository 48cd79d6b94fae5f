"""Every method by its name: a function of (shapes, ratio, seed) that makes the embedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.quality.methods.ablation import ABLATION
from benchmarks.quality.methods.base import Embedding, Shapes, TooSmallError, descending
from benchmarks.quality.methods.composed import HashEmbeddings, QuotientRemainder, TensorTrain
from benchmarks.quality.methods.forms import SIXTEEN_WORDS, Default, Formed, Lean, line_form, private_form
from benchmarks.quality.methods.kept import keeping
from benchmarks.quality.methods.learned import Clustered, DeepHash
from benchmarks.quality.methods.popular import HotRows, MixedDimensions, Pruned
from benchmarks.quality.methods.rows import FewBitRows, Full, Mapped
from benchmarks.quality.methods.trained import AFTERWARDS, Compressed
from hfh_embed.budget import PRESETS, Form

__all__ = [
    "ABLATION",
    "AFTERWARDS",
    "AFTER_SGD",
    "BY_FREQUENCY",
    "BY_RATIO",
    "COMPARED",
    "DROPPING",
    "FULL",
    "FULLS",
    "FULL_SGD",
    "METHODS",
    "OURS",
    "PEERS",
    "TAUGHT",
    "Embedding",
    "Shapes",
    "TooSmallError",
]

Maker = Callable[[Shapes, float, int], Embedding]


def _after(name: str) -> Maker:
    return partial(Compressed, compress=AFTERWARDS[name])


def _form(form: Form | Callable[[float, int], Form] | None) -> Maker:
    return partial(Formed, form=form)


FULL = "full table"
FULL_SGD = "full table, SGD"
FULLS: Mapping[str, Maker] = {
    FULL: Full,
    FULL_SGD: descending(Full),
    "full table of kept ids, SGD": descending(keeping(Full)),
}
"""What every ratio is measured by, the last to see what the ids that are not kept are worth."""
AFTER_SGD = ("hfh after training, SGD", "hfh after training, kept ids, SGD")
"""Tables that are compressed after training by gradient descent."""
BY_RATIO = "hfh by ratio"
"""What the library picks when it is given nothing but the ratio, and the lengths of the tables."""
BY_FREQUENCY = "hfh by frequency"
"""And when it is told how often training uses each id."""
ALL_LEVELS = Form(shared=False, level_share=1, level_cover=1, level_count=4, level_bits=4)
OURS: dict[str, Maker] = {
    "hfh line": _form(line_form()),
    "hfh line, 16 words": _form(SIXTEEN_WORDS),
    "hfh line, SGD": partial(Lean, form=line_form(), moments=False),
    "hfh line, 16 words, SGD": partial(Lean, form=SIXTEEN_WORDS, moments=False),
    "hfh line + network": _form(line_form(residual_hidden=16)),
    "hfh mix": _form(private_form),
    "hfh mix + map": _form(partial(private_form, latent_dim=16)),
    "hfh mix + network": _form(partial(private_form, residual_hidden=16)),
    "hfh line + map": _form(line_form(latent_dim=16)),
    "hfh line + exact rows": _form(line_form(exact_share=0.3, exact_bits=4)),
    "hfh levels of all ids": _form(ALL_LEVELS),
    "hfh levels of all ids, SGD": descending(_form(ALL_LEVELS)),
    BY_RATIO: Default,
    f"{BY_RATIO}, SGD": descending(Default),
    BY_FREQUENCY: _form(None),
    f"{BY_FREQUENCY}, SGD": descending(_form(None)),
    "hfh after training": _after("hfh after training"),
    "hfh after training, SGD": descending(_after("hfh after training")),
    "hfh after training, kept ids, SGD": descending(keeping(_after("hfh after training"))),
}
TAUGHT = {f"{BY_FREQUENCY}, distilled, SGD": f"{BY_FREQUENCY}, SGD"}
"""Methods whose labels a full table's model softens, and what they are made of."""
OURS |= {name: OURS[of] for name, of in TAUGHT.items()}
DROPPING: Mapping[str, Maker] = {
    "few-bit rows of kept ids, SGD": descending(keeping(FewBitRows)),
    "CAFE of kept ids, SGD": descending(keeping(HotRows)),
    "ROBE of kept ids, SGD": descending(keeping(_form(PRESETS["robe"]))),
}
"""Published methods that were given our way to drop ids, which needs frequencies."""
PEERS: Mapping[str, Maker] = {
    "few-bit rows": FewBitRows,
    "low dimension, 1 bit": partial(Mapped, bits=1),
    "low dimension, 2 bits": partial(Mapped, bits=2),
    "pruning": Pruned,
    "CAFE": HotRows,
    "hashing trick": _form(PRESETS["hashing_trick"]),
    "ROBE": _form(PRESETS["robe"]),
    "quotient-remainder": QuotientRemainder,
    "Hash Embeddings": HashEmbeddings,
    "mixed dimensions": MixedDimensions,
    "CCE": Clustered,
    "HashedNets": _form(PRESETS["hashed_nets"]),
    "Unified Embedding": _form(PRESETS["unified_embedding"]),
    "tensor train": TensorTrain,
    "deep hash embedding": DeepHash,
    "the paper's HFH": _form(PRESETS["hfh"]),
    "few-bit rows, SGD": descending(FewBitRows),
    "hashing trick, SGD": descending(_form(PRESETS["hashing_trick"])),
    "CAFE, SGD": descending(HotRows),
    "ROBE, SGD": descending(_form(PRESETS["robe"])),
    "quotient-remainder, SGD": descending(QuotientRemainder),
    "the paper's HFH, SGD": descending(_form(PRESETS["hfh"])),
    **DROPPING,
    "few bits after training": _after("few bits after training"),
    "PQ after training": _after("PQ after training"),
    "OPQ after training": _after("OPQ after training"),
}
COMPARED: Mapping[str, Maker] = {**FULLS, **OURS, **PEERS}
METHODS: Mapping[str, Maker] = COMPARED | {name: make for group in ABLATION.values() for name, make in group.items()}
"""All of them, those of the ablation last."""
