"""From one ratio to exact bytes: which parts the tables get and how many slots the pool has.

``ratio`` is the only knob a user needs. :func:`choose` turns it into a :class:`Form` (how the bytes are spent),
:func:`plan` into a :class:`~hfh_embed.layout.SnapshotSpec` whose ``nbytes`` never exceed dense bytes / ratio. A form may
also be given outright; the methods that this one generalises are such forms (``PRESETS``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hfh_embed.bit_levels import least_bytes
from hfh_embed.errors import RatioError, SpecError, nearest_ratio
from hfh_embed.frequent import (
    Frequencies,
    are_unequal,
    have_unequal_lengths,
    kept_count,
    kept_frequencies,
    share_of_uses,
    uses_worth_a_row,
    with_exact,
    with_levels,
)
from hfh_embed.hashing import table_key
from hfh_embed.layout import SnapshotSpec
from hfh_embed.packing import packed_bytes
from hfh_embed.parts import MAX_LEVELS
from hfh_embed.spec import (
    LINE_BITS,
    Level,
    LevelsSpec,
    Locality,
    MapSpec,
    PoolSpec,
    PrivateRole,
    PrivateSpec,
    Reconstruction,
    ResidualSpec,
    SharedSpec,
    TableSpec,
    Unknown,
)

__all__ = ["PRESETS", "Form", "Frequencies", "Shapes", "choose", "plan"]

Shapes = Mapping[str, tuple[int, int]]

LEAST_RATIO = 8
"""From which ratio on frequencies, or the lengths of tables of short rows, decide the form."""
LEAST_ENTRY_BITS = 0.95
"""With nearly a bit for every entry ids have rows of their own, of as many bits as their use is worth (docs/results.md)."""
LEAST_MIXED_BITS = 10
"""With how many bits an id has some of its own beside what all share, where ids are alike: eight, if four fifths are its own."""
LEAST_WIDTH_BITS = 16
"""With how many bits an id is worth a row of its own in levels of falling width, where frequencies are unequal and rows
longer than MEDIUM_DIM (docs/language-models.md)."""
SHORT_DIM, MEDIUM_DIM = 32, 64
"""Rows of up to SHORT_DIM entries have no private bits beside a line from LEAST_RATIO on: on clicks and on books rows of their own, or the
line alone, were better. Longer ones were not measured without frequencies."""
LEAST_USES, LEAST_SHARE = 10, 0.25
"""Uses of an id without which it is not kept where frequencies are unequal: fewer teach a row nothing (docs/results.md). And the share of
all uses that the kept ids must have: with less, the counts are of too little data to tell."""
MOST_SHARE = 0.9
"""The share of all uses that kept ids must have where more are dropped, so that the others have nearly a bit for every entry."""
OWN_SHARE, LEAST_POOL_BYTES = 0.8, 256
"""The share of the bytes that private bits may take, and what must be left for a pool beside them."""


@dataclass(frozen=True)
class Form:
    """How the bytes of a ratio are spent: the parts that every table of a group gets. The pool takes what the others leave.

    Attributes:
        shared: whether rows read the pool at all.
        bits: of a pool value; 1, 2, 4, 8, 16 or 32.
        num_hashes, chunk_size: U and Z; 0 picks them by the row's length (U, Z) or takes the whole row (Z outside ``words``).
        locality, lines, signs: see :class:`~hfh_embed.spec.SharedSpec`.
        reconstruction, hidden: g, and the hidden units of the MLP.
        latent_dim: R, with a linear map to D wherever D is longer; 0: no map.
        private_dim, private_bits, private_role, row_scale: coefficients of each id; dim 0: all R entries, bits 0: none.
        exact_share, exact_bits: share of the bytes for exact rows of the most frequent ids; needs frequencies.
        level_share: share of the bytes for exact rows in levels of falling width; needs frequencies.
        level_count, level_cover: how many levels, each four times as long as the one before, and the share of ids in all of them.
        level_bits, level_map_bits: of the levels' rows and maps; 0 bits: rows of full width and as many bits as an id's use is worth,
            by the frequencies or else by the tables' lengths (:mod:`hfh_embed.bit_levels`).
        level_fall: how many times narrower than the one before a level may be; the first is as wide as that allows.
        level_adds: whether levels are added to what ids share, or in its place.
        least_uses: ids that are used less often are not kept, their rows are zeros, where that saves more bytes than the bit for each
            id of the table that says so; 0: all are kept. Needs frequencies.
        map_bits: of the linear map's values.
        residual_hidden: hidden units of the residual network that tables of equal D share; 0: none.
    """

    shared: bool = True
    bits: int = 1
    num_hashes: int = 0
    chunk_size: int = 0
    locality: Locality = Locality.WORDS
    lines: int = 1
    signs: bool = True
    reconstruction: Reconstruction = Reconstruction.SUM
    hidden: int = 0
    latent_dim: int = 0
    private_dim: int = 0
    private_bits: int = 0
    private_role: PrivateRole = PrivateRole.ADD
    row_scale: bool = False
    exact_share: float = 0.0
    exact_bits: int = 8
    level_share: float = 0.0
    level_count: int = 3
    level_cover: float = 0.25
    level_bits: int = 4
    level_map_bits: int = 8
    level_fall: float = 4.0
    level_adds: bool = False
    least_uses: int = 0
    map_bits: int = 32
    residual_hidden: int = 0

    def __post_init__(self) -> None:
        if self.reconstruction is not Reconstruction.SUM and self.num_hashes == 0:
            raise SpecError(f"reconstruction {self.reconstruction.value!r} needs num_hashes; give 2 to 64")
        if not 0 <= self.exact_share < 1:
            raise SpecError(f"exact_share is {self.exact_share}; give a share of the bytes from 0 up to, but below, 1")
        if not 0 <= self.level_share < 1 and not (self.level_share == 1 and not self.shared):
            raise SpecError(f"level_share is {self.level_share}; give a share of the bytes from 0 up to, but below, 1")
        if self.level_share and not (
            0 < self.level_cover <= 1 and 1 <= self.level_count <= MAX_LEVELS and self.level_fall >= 1
        ):
            raise SpecError(
                f"level_cover is {self.level_cover}, level_count {self.level_count} and level_fall {self.level_fall}; "
                f"give a share of the ids above 0, 1 to {MAX_LEVELS} levels and a factor from 1"
            )
        if self.level_share and self.level_bits == 0 and (self.shared or self.private_bits or self.level_cover != 1):
            raise SpecError(
                "with level_bits 0 every id has a row of its own; set shared to False, private_bits to 0, level_share and level_cover to 1"
            )
        if not (isinstance(self.least_uses, int) and self.least_uses >= 0):
            raise SpecError(f"least_uses is {self.least_uses!r}; give a number of uses, or 0 to keep every id")
        if self.level_share and self.exact_share:
            raise SpecError("a form has exact rows of full width or in levels; leave exact_share or level_share at 0")
        if not self.shared and self.private_bits == 0 and not (self.level_share and self.level_cover == 1):
            raise SpecError("a form without a shared part needs private_bits, or levels that cover every id")

    def table(self, name: str, n: int, dim: int, seed: int, pool: str) -> TableSpec:
        """The table of this form, without exact rows and levels."""
        latent = min(self.latent_dim or dim, dim)
        return TableSpec(
            name=name,
            num_embeddings=n,
            embedding_dim=dim,
            latent_dim=latent,
            shared=self._shared(latent, table_key(seed, name), pool) if self.shared else None,
            private=self._private(latent) if self.private_bits else None,
            levels=None if self.shared or self.private_bits else LevelsSpec((Level(n, self.level_bits or 1, latent),)),
            map=MapSpec(self.map_bits) if latent < dim else None,
            residual=ResidualSpec(f"dim{dim}", self.residual_hidden) if self.residual_hidden else None,
            unknown=Unknown.RECONSTRUCT if self.shared else Unknown.ERROR,
        )

    def _shared(self, dim: int, key: int, pool: str) -> SharedSpec:
        hashes, size = self.num_hashes, self.chunk_size
        if self.locality is Locality.WORDS:
            line_slots = LINE_BITS // self.bits
            if hashes == 0:  # as many words as still hold the row, so that it touches one line (docs/method.md)
                short = dim <= SHORT_DIM and self.bits == 1 and not self.private_bits
                hashes = 16 if short else 8 if dim <= 64 else 4
            size = size or min(128, max(1, line_slots // hashes))
        else:
            hashes = hashes or 1
            size = min(size or dim, dim)
        return SharedSpec(pool, dim, key, hashes, size, self.locality, self.lines, self.signs)

    def _private(self, latent: int) -> PrivateSpec:
        if self.private_role is PrivateRole.WEIGH:
            return PrivateSpec(self.num_hashes, self.private_bits, self.private_role, self.row_scale)
        return PrivateSpec(
            min(self.private_dim or latent, latent), self.private_bits, self.private_role, self.row_scale
        )


PRESETS: Mapping[str, Form] = {
    # The method's own forms.
    "line": Form(),
    "hfh": Form(
        bits=32, num_hashes=4, chunk_size=1, locality=Locality.FREE, reconstruction=Reconstruction.MLP, hidden=4
    ),
    # HashedNets, arXiv 1504.04788: one signed value an entry.
    "hashed_nets": Form(bits=32, num_hashes=1, chunk_size=1, locality=Locality.FREE),
    # The hashing trick, arXiv 0902.2206: each id is one of few whole rows.
    "hashing_trick": Form(bits=32, num_hashes=1, locality=Locality.ALIGNED, signs=False),
    # ROBE, arXiv 2108.02191: chunks from anywhere in one array.
    "robe": Form(bits=32, num_hashes=1, chunk_size=8, locality=Locality.FREE, signs=False),
    # Unified Embedding, arXiv 2305.12102: all features look up pieces in one table.
    "unified_embedding": Form(bits=32, num_hashes=1, chunk_size=16, locality=Locality.ALIGNED, signs=False),
    # Hash Embeddings, arXiv 1709.03933: two component rows, weighed by coefficients of the id.
    "hash_embeddings": Form(
        bits=32,
        num_hashes=2,
        locality=Locality.ALIGNED,
        signs=False,
        private_bits=32,
        private_role=PrivateRole.WEIGH,
    ),
}
"""Published methods as settings of the one form, by name, each a baseline for the others."""


def choose(
    ratio: float,
    tables: Shapes | None = None,
    frequencies: Frequencies | None = None,
    least_uses: int | None = None,
) -> Form:
    """The form that a ratio gets by default.

    With 32 / ratio bits an entry to spend, rows get bits of their own as long as at least a fifth is left for what they
    share; from about 25x on, one bit for every entry of every id no longer fits and everything is shared.

    From 8x on more is looked at (docs/results.md): how often each id is used, where that is known of all tables, or else, where no row has
    more than SHORT_DIM entries, how long the tables are, as ids of short ones are used more. While there is a bit for every entry, every
    id has a row of as many bits as its use is worth. With fewer, ids that are alike have some bits of their own beside a line, others
    read the line alone. Where frequencies are unequal, as those of words and clicks, ids with fewer uses than ``least_uses`` are not kept
    (ten, or more where only then the others have nearly a bit for every entry), and long rows of ids that are all kept, as of words, are in
    four levels, narrower the rarer their ids are.
    """
    affordable = OWN_SHARE * 32 / ratio
    private_bits = max((bits for bits in (1, 2, 4, 8, 16) if bits <= affordable), default=0)
    if not tables or ratio < LEAST_RATIO:
        return Form(private_bits=private_bits)
    counts = frequencies or {}
    known = tables.keys() <= counts.keys()
    longest = max(dim for _, dim in tables.values())
    if not known and longest > SHORT_DIM:
        return Form(private_bits=private_bits)
    frequencies = counts if known else {}
    unequal = are_unequal(frequencies) if known else have_unequal_lengths([n for n, _ in tables.values()])
    if least_uses is None:
        drops = known and unequal and share_of_uses(frequencies, LEAST_USES) >= LEAST_SHARE
        least_uses = _least_uses(tables, ratio, frequencies) if drops else 0
    kept = _kept_counts(tables, ratio, least_uses, frequencies)
    index_bits = sum(n for name, (n, _) in tables.items() if kept[name] < n)
    nbytes = sum(4 * n * dim for n, dim in tables.values()) / ratio - index_bits / 8
    id_bits = 8 * nbytes / sum(kept.values())
    entry_bits = 8 * nbytes / sum(kept[name] * dim for name, (_, dim) in tables.items())
    if longest > MEDIUM_DIM and unequal and not index_bits:
        if id_bits >= LEAST_WIDTH_BITS:
            return Form(shared=False, level_share=1, level_cover=1, level_count=4, least_uses=least_uses)
        return Form(least_uses=least_uses)
    sizes = [(kept[name], dim) for name, (_, dim) in tables.items()]
    if entry_bits >= LEAST_ENTRY_BITS and least_bytes(sizes) <= nbytes:
        return Form(shared=False, level_share=1, level_cover=1, level_bits=0, least_uses=least_uses)
    own = int(OWN_SHARE * id_bits) // 8 * 8
    if not unequal and id_bits >= LEAST_MIXED_BITS and (1 - OWN_SHARE) * nbytes >= LEAST_POOL_BYTES:
        return Form(private_bits=1, private_dim=own, least_uses=least_uses)
    return Form(least_uses=least_uses)


def plan(
    tables: Shapes,
    ratio: float,
    *,
    form: Form | None = None,
    seed: int = 0,
    frequencies: Frequencies | None = None,
    least_uses: int | None = None,
    pool: str = "pool",
) -> SnapshotSpec:
    """A group of tables over one pool, at most dense bytes / ratio in all.

    Args:
        tables: name -> (num_embeddings, embedding_dim).
        ratio: dense float32 bytes / all stored bytes, >= 1.
        form: how to spend the bytes; by default chosen from the ratio and the frequencies.
        seed: of the hash functions.
        frequencies: name -> (num_embeddings,) counts, how often each id is used.
        least_uses: in place of the form's, see there; 0 keeps every id, None leaves it to the form.
        pool: the pool's name.

    Raises:
        RatioError: the ratio cannot be met; its ``nearest`` can.
        SpecError: the form does not fit the tables.
    """
    if not tables:
        raise SpecError("no tables to plan for; give at least one name with its (num_embeddings, embedding_dim)")
    if not (isinstance(ratio, int | float) and np.isfinite(ratio) and ratio >= 1):
        raise RatioError(
            f"ratio is {ratio!r}; give a number from 1 on (100 means a hundred times smaller)", nearest=1.0
        )
    if form is None:
        form = choose(ratio, tables, frequencies, least_uses)
    elif least_uses is not None:
        form = dataclasses.replace(form, least_uses=least_uses)
    counts = _kept_counts(tables, ratio, form.least_uses, frequencies or {})
    specs = [form.table(name, counts[name], dim, seed, pool) for name, (_, dim) in tables.items()]
    dense = sum(4 * n * dim for n, dim in tables.values())
    budget = int(dense / ratio)
    whole = [table.among(tables[table.name][0]) for table in specs]
    index = sum(packed_bytes(table.num_embeddings, 1) for table in whole if table.kept is not None)
    known = kept_frequencies(whole, frequencies or {})
    if form.exact_share:
        specs = with_exact(specs, form.exact_bits, int(budget * form.exact_share), known)
    if form.level_share:
        specs = with_levels(specs, form, int((budget - index) * form.level_share), known)
    specs = [table.among(tables[table.name][0]) for table in specs]
    line_slots = LINE_BITS // form.bits
    need = max((_slots_needed(table) for table in specs), default=0)
    fewest = -(-need // line_slots) * line_slots
    least = _snapshot(specs, form, fewest, seed, pool).nbytes
    if least > budget:
        raise _unreachable(ratio, dense, least, form)
    slots = fewest + (budget - least) * 8 // LINE_BITS * line_slots if form.shared else 0
    return _snapshot(specs, form, min(slots, _most_slots(form)), seed, pool)


def _least_uses(tables: Shapes, ratio: float, frequencies: Frequencies) -> int:
    """LEAST_USES, or more where only fewer ids can have nearly a bit for every entry."""
    bits = sum((32 * dim / ratio - 1) * n for n, dim in tables.values())
    return max(LEAST_USES, uses_worth_a_row(tables, frequencies, bits / LEAST_ENTRY_BITS, MOST_SHARE))


def _kept_counts(tables: Shapes, ratio: float, least_uses: int, frequencies: Frequencies) -> dict[str, int]:
    """How many ids each table keeps."""
    return {
        name: kept_count(n, 4 * dim / ratio, frequencies.get(name), least_uses) for name, (n, dim) in tables.items()
    }


def _slots_needed(table: TableSpec) -> int:
    shared = table.shared
    if shared is None:
        return 0
    return shared.chunk_size * (shared.num_hashes if shared.locality is Locality.WORDS else 1)


def _most_slots(form: Form) -> int:
    """More slots than hash functions can address would be bytes without use."""
    return 2**32 if form.locality is Locality.FREE else 2**46


def _snapshot(tables: list[TableSpec], form: Form, slots: int, seed: int, pool: str) -> SnapshotSpec:
    if not form.shared:
        return SnapshotSpec(tuple(tables))
    network = form.num_hashes if form.reconstruction is not Reconstruction.SUM else 0
    spec = PoolSpec(pool, slots, form.bits, seed, form.reconstruction, network, form.hidden)
    return SnapshotSpec(tuple(tables), (spec,))


def _unreachable(ratio: float, dense: int, least: int, form: Form) -> RatioError:
    nearest = dense / least
    if nearest < 1:
        return RatioError(
            f"ratio {ratio:g} allows {int(dense / ratio):,} bytes, but even the smallest pool takes {least:,}, more than the "
            f"{dense:,} bytes of the dense tables; keep them dense, or put more tables on one pool",
            nearest=1.0,
        )
    nearest = nearest_ratio(dense, least)
    return RatioError(
        f"ratio {ratio:g} allows {int(dense / ratio):,} bytes, but this form needs at least {least:,}; "
        f"the nearest ratio that can be met is {nearest:g}",
        nearest=nearest,
    )
