"""Layers that keep only some of their ids: trained, saved and loaded."""

import numpy as np
import pytest
import torch

from hfh_embed import nn as hnn
from hfh_embed.budget import LEAST_USES, Form
from hfh_embed.codec import compress, update
from hfh_embed.errors import InputError, RatioError, SpecError

N, D = 2_000, 32
USES = np.random.default_rng(0).zipf(1.3, N).clip(max=10**6) - 1
KEPT = torch.from_numpy(USES >= LEAST_USES)
IDS = torch.arange(N)


@pytest.mark.parametrize("ratio", [10, 32, 100])
def test_rows_are_those_of_the_snapshot_and_other_ids_stay_zero(ratio: int, tmp_path) -> None:
    layer = hnn.HFHEmbedding(N, D, ratio=ratio, frequencies=USES)
    least = np.sort(USES)[-layer.spec.num_kept]
    kept = torch.from_numpy(least <= USES)
    assert layer.spec.num_kept == int(kept.sum()) and bool((kept <= KEPT).all())
    assert ratio == 100 or torch.equal(kept, KEPT), "fewer are kept only where the bytes are too few for all"
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(IDS) - 1).square().sum().backward()
        optimizer.step()
    rows = layer(IDS).detach()
    assert torch.equal(rows.abs().sum(1) > 0, kept)
    snapshot = hnn.save(layer, tmp_path / "a.hfh")
    assert np.allclose(snapshot["table"].lookup(IDS.numpy()), rows.numpy(), atol=1e-5)
    loaded = hnn.load(tmp_path / "a.hfh")["table"]
    assert torch.allclose(loaded(IDS), rows, atol=1e-5)
    other = hnn.HFHEmbedding(N, D, ratio=ratio, frequencies=USES[::-1].copy())
    if other.spec == layer.spec:
        other.load_state_dict(layer.state_dict())
        assert torch.allclose(other(IDS), rows, atol=1e-5)


def test_training_by_lines_reaches_kept_ids_alone() -> None:
    form = Form(least_uses=LEAST_USES)
    layer = hnn.HFHEmbedding(N, D, ratio=100, form=form, frequencies=USES)
    assert layer.pool is not None and layer.spec.shared is not None
    optimizer = hnn.PoolSGD(layer.pool, 1e-4)
    before = layer.pool.store.values.detach().clone()
    layer(IDS[~KEPT]).sum().backward()
    optimizer.step()
    assert torch.equal(layer.pool.store.values, before)
    optimizer.zero_grad()
    target = torch.randn(N, D)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(IDS[KEPT]) - target[KEPT]).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_bags_leave_the_padding_id_out_and_count_other_ids() -> None:
    padding = int(IDS[KEPT][0])
    bag = hnn.HFHEmbeddingBag(N, D, ratio=32, frequencies=USES, mode="mean", padding_idx=padding)
    own, other = int(IDS[KEPT][1]), int(IDS[~KEPT][0])
    row = bag.weight[own].detach()
    assert torch.allclose(bag(torch.tensor([[own, padding]]))[0], row, atol=1e-6)
    assert torch.allclose(bag(torch.tensor([[own, other]]))[0], row / 2, atol=1e-6)
    assert bag.weight[padding].abs().sum() == 0


def test_a_head_refuses_a_table_that_lacks_rows_and_keeps_all_of_its_own() -> None:
    layer = hnn.HFHEmbedding(N, D, ratio=32, frequencies=USES)
    with pytest.raises(SpecError, match="least_uses=0"):
        hnn.VocabularyHead(N, D, tie=layer)
    pool = hnn.Pool.for_tables({"words": (N, D)}, 32, frequencies={"words": USES})
    with pytest.raises(SpecError, match="least_uses=0"):
        hnn.VocabularyHead(N, D, pool=pool, name="words")
    assert hnn.VocabularyHead(N, D, ratio=32, frequencies=USES).spec.kept is None
    assert hnn.HFHEmbedding(N, D, ratio=32, frequencies=USES, least_uses=0).spec.kept is None


def test_compressing_keeps_often_used_ids_and_says_what_it_cannot() -> None:
    rows = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)
    snapshot = compress(rows, ratio=32, frequencies=USES, least_uses=LEAST_USES, padding_id=3)
    found = snapshot["table"].lookup(IDS.numpy())
    kept = KEPT.numpy() & (IDS.numpy() != 3)
    assert snapshot.ratio >= 32 and snapshot["table"].spec.num_kept == kept.sum()
    assert ((np.abs(found).sum(axis=1) > 0) == kept).all()
    whole = compress(rows, ratio=32, frequencies=USES)["table"].lookup(IDS.numpy())
    assert np.square(found - rows)[kept].mean() < np.square(whole - rows)[kept].mean(), "they have the others' bytes"
    with pytest.raises(RatioError, match="tell the kept ids") as error:
        compress(rows, ratio=3000, frequencies=USES, least_uses=LEAST_USES)
    assert (
        compress(rows, ratio=error.value.nearest, frequencies=USES, least_uses=LEAST_USES).ratio >= error.value.nearest
    )
    for options, text in (
        ({"least_uses": LEAST_USES}, "give frequencies"),
        ({"least_uses": 10**9, "frequencies": USES}, "no id is used"),
        ({"least_uses": -1, "frequencies": USES}, "least_uses is -1"),
        ({"least_uses": LEAST_USES, "frequencies": USES[:7]}, "frequencies have shape"),
    ):
        with pytest.raises(InputError, match=text):
            compress(rows, ratio=32, **options)
    with pytest.raises(InputError, match="goes with a ratio"):
        compress(rows, min_cosine=0.9, frequencies=USES, least_uses=LEAST_USES)
    with pytest.raises(InputError, match="keeps"):
        update(snapshot, rows[:3], ids=np.arange(3))
    broken = rows.copy()
    broken[int(np.flatnonzero(~kept)[5])] = np.nan
    with pytest.raises(InputError, match=str(np.flatnonzero(~kept)[5])):
        compress(broken, ratio=32, frequencies=USES, least_uses=LEAST_USES)


def test_a_compressed_table_of_kept_ids_is_trained_on() -> None:
    rows = torch.randn(N, D)
    layer = hnn.HFHEmbedding.from_pretrained(rows, freeze=False, ratio=16, frequencies=USES, least_uses=LEAST_USES)
    found = layer(IDS)
    assert torch.equal(found.detach().abs().sum(1) > 0, KEPT)
    found.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
