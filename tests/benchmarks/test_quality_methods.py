"""Every method of the laboratory learns, keeps to its bytes, and counts what it would store."""

import numpy as np
import pytest
import torch

from benchmarks.quality.methods import (
    ABLATION,
    AFTER_SGD,
    AFTERWARDS,
    BY_RATIO,
    COMPARED,
    FULL,
    FULLS,
    METHODS,
    Embedding,
    Shapes,
    TooSmallError,
)
from benchmarks.quality.methods.forms import Default, Formed
from benchmarks.quality.methods.kept import Keeping
from benchmarks.quality.methods.popular import rice
from hfh_embed.budget import LEAST_USES, plan

SIZES = {"user": 1_000, "item": 3_001}
GENERATOR = np.random.default_rng(0)
SHAPES = Shapes(SIZES, 32, {name: GENERATOR.zipf(1.3, n).clip(max=1000) - 1 for name, n in SIZES.items()}, std=0.1)
FIELDS = tuple(SIZES)
STEPS = 5
"""Of an epoch here."""
FEW_BIT = {
    "few-bit rows",
    "few-bit rows, SGD",
    "few-bit rows of kept ids, SGD",
    "low dimension, 1 bit",
    "low dimension, 2 bits",
    "pruning",
    "CCE",
}


def trained(name: str, ratio: float, epochs: int = 6) -> tuple[Embedding, list[float]]:
    """The method after some steps towards given rows of some ids, with the loss of each."""
    torch.manual_seed(0)
    embed = METHODS[name](SHAPES, ratio, 0)
    optimizer = embed.own_optimizer(2e-4) or torch.optim.Adam(embed.parameters(), lr=0.02)
    ids = torch.from_numpy(np.stack([np.random.default_rng(1).integers(n, size=40) for n in SIZES.values()], axis=1))
    target = torch.randn(40, 2, 32) * 0.1
    losses = []
    for step in range(epochs * STEPS):
        embed.before_step(step, STEPS)
        loss = (embed(FIELDS, ids) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        embed.after_backward()
        optimizer.step()
        losses.append(loss.item())
    embed.after_training()
    return embed, losses


@pytest.mark.parametrize("ratio", [32, 300])
@pytest.mark.parametrize("name", [name for name in COMPARED if name not in FULLS])
def test_a_method_learns_within_its_bytes_or_says_that_it_cannot(name: str, ratio: int) -> None:
    try:
        embed, losses = trained(name, ratio)
    except TooSmallError:
        assert name not in ("hfh line", "hashing trick"), "these can be had at any ratio"
        return
    budget = SHAPES.budget(ratio)
    assert embed.nbytes <= budget + 4, f"{embed.nbytes} bytes of {budget}"
    assert embed.nbytes > budget / 3, f"{embed.nbytes} bytes of {budget}"
    assert np.mean(losses[-5:]) < losses[0], losses


@pytest.mark.parametrize("name", [name for name in COMPARED if name not in FEW_BIT | {*AFTERWARDS, *AFTER_SGD}])
def test_every_trained_value_of_a_peer_is_counted(name: str) -> None:
    embed, _ = trained(name, 20, epochs=1)
    if isinstance(embed, Keeping):
        assert embed.nbytes == embed.method.nbytes + -(-SHAPES.total // 8)
        embed = embed.method
    if isinstance(embed, Default | Formed):
        assert embed.nbytes == (embed.pool if isinstance(embed, Default) else embed.table).nbytes
        return
    stored = embed.arrays()
    assert sum(array.size for array in stored.values()) >= sum(p.numel() for p in embed.parameters())
    assert embed.nbytes == sum(array.nbytes for array in stored.values())


@pytest.mark.parametrize(
    ("name", "bits"), [("few-bit rows", 3), ("low dimension, 1 bit", 1), ("low dimension, 2 bits", 2)]
)
def test_few_bit_rows_count_a_code_for_each_value_without_gaps(name: str, bits: int) -> None:
    embed, _ = trained(name, 10 if bits == 3 else 40, epochs=1)
    codes = embed.arrays()["codes"]
    assert codes.size == -(-embed.values.masters.numel() * bits // 8)
    stored = np.unpackbits(codes.reshape(-1), bitorder="little")[: embed.values.masters.numel() * bits]
    assert 0.3 < stored.mean() < 0.7, "the codes are those of values on both sides of zero"


def test_pruning_stores_the_places_that_it_keeps() -> None:
    embed, _ = trained("pruning", 32)
    stored = embed.arrays()
    assert len(stored["codes"]) == embed.kept == int(embed.mask.sum())
    gaps = unrice(stored["gaps"], embed.kept)
    assert np.array_equal(np.cumsum(gaps + 1) - 1, np.flatnonzero(embed.mask.numpy()))


def unrice(stored: np.ndarray, count: int) -> np.ndarray:
    """The integers of a Rice code."""
    low, bits = int(stored[0]), np.unpackbits(stored[1:], bitorder="little")
    ends = np.flatnonzero(bits)[:count]
    quotients = np.diff(ends, prepend=-1) - 1
    rest = bits[ends[-1] + 1 :][: count * low].reshape(count, low).astype(np.int64)
    return (quotients << low) + (rest << np.arange(low)).sum(axis=1)


@pytest.mark.parametrize("mean", [0, 1, 30, 5000])
def test_rice_code_is_read_back_and_near_the_bound(mean: int) -> None:
    gaps = np.random.default_rng(2).geometric(1 / (mean + 1), size=2000) - 1
    stored = rice(gaps)
    assert np.array_equal(unrice(stored, len(gaps)), gaps)
    assert 8 * len(stored) / len(gaps) < np.log2(mean + 1) + 2.2


def test_cce_counts_the_codes_of_all_ids() -> None:
    embed, _ = trained("CCE", 32)
    assert embed.rounds > 0, "no clustering took place"
    assert 8 * embed.arrays()["codes"].size >= SHAPES.total * len(embed.first) * embed.bits


def test_cafe_gives_exact_rows_to_the_ids_that_are_trained() -> None:
    embed, _ = trained("CAFE", 20)
    owners = embed.owners[embed.owners >= 0]
    looked_at = torch.nonzero(embed.importance > 0).flatten()
    assert 0 < len(looked_at) <= len(owners) and bool(torch.isin(looked_at, owners).all())
    assert bool((embed.slots[owners] == torch.nonzero(embed.owners >= 0).flatten()).all())
    assert len(torch.unique(owners)) == len(owners)


WHOLE_STEPS = {
    "two bits, one width",
    "four bits, widths by use",
    "line, and a third for pruned coefficients",
    "pruned coefficients of kept ids",
}
"""What can use bytes only in steps: whole bytes of every row, or as many coefficients as an estimate of their places allows."""


@pytest.mark.parametrize("group", ABLATION)
def test_what_the_ablation_changes_keeps_to_the_same_bytes(group: str) -> None:
    assert len(ABLATION[group]) > 1
    for name, make in ABLATION[group].items():
        embed = make(SHAPES, 32, 0)
        if embed.settles:
            embed.before_step(embed.settles * STEPS - 1, STEPS)
        least = SHAPES.budget(32) * 0.85 if name in WHOLE_STEPS else SHAPES.budget(32) - 256
        assert least < embed.nbytes <= SHAPES.budget(32), name
        assert torch.isfinite(embed(FIELDS, torch.tensor([[0, 3000], [999, 1]]))).all(), name


def test_rows_of_ids_that_are_not_kept_are_zeros_and_those_of_others_are_the_methods() -> None:
    embed, _ = trained("few-bit rows of kept ids, SGD", 32)
    uses = torch.from_numpy(SHAPES.joined_counts)
    rows = embed.rows(torch.arange(SHAPES.total))
    assert torch.equal(rows.abs().sum(1) > 0, uses >= LEAST_USES)
    assert torch.equal(rows[uses >= LEAST_USES], embed.method.rows(torch.arange(embed.method.total)))


def test_what_is_compressed_after_training_is_judged_by_the_rows_that_are_left() -> None:
    embed, _ = trained("hfh after training", 32)
    ids = torch.tensor([[0, 3000], [999, 1]])
    after = embed(FIELDS, ids)
    torch.manual_seed(0)
    whole = METHODS[FULL](SHAPES, 1, 0)
    assert embed.nbytes <= SHAPES.budget(32) < whole.nbytes
    assert not torch.equal(after, whole(FIELDS, ids))
    assert not whole.after_training(), "other methods are judged as they were trained"


@pytest.mark.parametrize("name", ABLATION["masters of bfloat16"])
def test_bfloat16_masters_learn_without_a_gradient_of_the_whole_pool(name: str) -> None:
    torch.manual_seed(0)
    embed = METHODS[name](SHAPES, 32, 0)
    optimizer = embed.own_optimizer(0.02 if name == "PoolAdam" else 2e-4)
    assert optimizer is not None
    ids, losses = torch.arange(40)[:, None].expand(-1, 2), []
    for _ in range(20):
        loss = (embed(FIELDS, ids) - 0.1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses
    assert all(p.dtype == torch.bfloat16 and p.grad is None for p in embed.parameters())


def test_one_map_is_shared_by_all_fields() -> None:
    embed, _ = trained("hfh mix + map", 20, epochs=1)
    assert sum(name.endswith("map.values") for name, _ in embed.named_parameters()) == 1


def test_ids_of_different_fields_have_different_rows() -> None:
    for name in COMPARED:
        embed = METHODS[name](SHAPES, 32 if name.startswith("few-bit rows") else 40, 0)
        shared_id = int(
            np.flatnonzero((SHAPES.counts["user"] >= LEAST_USES) & (SHAPES.counts["item"][:1000] >= LEAST_USES))[0]
        )
        rows = embed(("item", "user"), torch.tensor([[shared_id, shared_id]]))[0]
        assert name == "mixed dimensions" or not torch.equal(rows[0], rows[1]), name


@pytest.mark.parametrize("ratio", [8, 10, 16, 32, 100, 1000])
def test_the_default_is_what_the_library_picks_for_a_table_for_each_field(ratio: float) -> None:
    embed = METHODS[BY_RATIO](SHAPES, ratio, 0)
    assert isinstance(embed, Default)
    tables = {name: (n, SHAPES.dim) for name, n in SHAPES.sizes.items()}
    assert embed.pool.plan == plan(tables, ratio)
    assert embed.nbytes == plan(tables, ratio).nbytes <= SHAPES.budget(ratio)
    ids = torch.tensor([[3, 4], [3, 4], [5, 6]])
    rows = embed(("item", "user"), ids)
    assert rows.shape == (3, 2, SHAPES.dim)
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert torch.equal(embed(("user",), ids[:, 1:])[:, 0], rows[:, 1])
