"""The torch layers against the reference, against torch's own layers over the same dense table, and as modules."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

import hfh_embed
from hfh_embed import nn as hnn
from hfh_embed import reference
from hfh_embed.budget import PRESETS, Form
from hfh_embed.errors import SpecError, UnknownIdError
from hfh_embed.nn.io import snapshot_of
from hfh_embed.spec import Locality, Reconstruction

N, D = 3_001, 40
FORMS = {name: form for name, form in PRESETS.items() if name != "hash_embeddings"} | {
    "hash_embeddings": PRESETS["hash_embeddings"],
    "mixed": Form(private_bits=1),
    "mixed-rows": Form(private_bits=2, private_dim=8, row_scale=True),
    "latent": Form(latent_dim=16, residual_hidden=8, bits=2),
    "bilinear": Form(
        bits=4, locality=Locality.FREE, num_hashes=2, chunk_size=8, reconstruction=Reconstruction.BILINEAR
    ),
    "two-lines": Form(bits=8, locality=Locality.LINE, num_hashes=2, chunk_size=8, lines=2),
    "half": Form(bits=16, num_hashes=2),
    "rows": Form(shared=False, private_bits=2),
    "exact": Form(exact_share=0.3, exact_bits=4),
    "levels": Form(level_share=0.5),
    "levels-add": Form(
        level_share=0.5, level_count=2, level_cover=0.4, level_bits=1, level_map_bits=32, level_adds=True
    ),
    "levels-alone": Form(shared=False, level_share=1, level_cover=1, level_count=4, level_map_bits=4),
    "few-bit-mlp": Form(
        locality=Locality.FREE, num_hashes=4, chunk_size=4, reconstruction=Reconstruction.MLP, hidden=8
    ),
}
ROUNDED = (
    "hfh",
    "latent",
    "bilinear",
    "few-bit-mlp",
    "levels",
    "levels-add",
    "levels-alone",
)  # a network or map follows: equal within float32 rounding
NEEDS_FREQUENCIES = ("exact", "levels")
IDS = torch.tensor([0, 3, N - 1, 17, 17, 1234])


def _embedding(form: str | Form, **options) -> hnn.HFHEmbedding:
    torch.manual_seed(1)
    chosen = FORMS[form] if isinstance(form, str) else form
    frequencies = np.arange(N) if chosen.exact_share or chosen.level_share else None
    return hnn.HFHEmbedding(N, D, ratio=6, form=chosen, frequencies=frequencies, **options)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("form", FORMS)
def test_the_forward_pass_equals_the_saved_snapshot(form: str) -> None:
    layer = _embedding(form, padding_idx=3)
    rows = layer(IDS).detach().numpy()
    table = snapshot_of(layer)["table"]
    if form in ROUNDED:
        assert np.abs(rows - reference.rows(table.data, IDS.numpy())).max() < 1e-6
    else:
        assert rows.tobytes() == table.lookup(IDS.numpy()).tobytes()


@pytest.mark.parametrize("form", FORMS)
def test_training_moves_it_and_it_still_equals_its_snapshot(form: str) -> None:
    layer = _embedding(form)
    before = layer(IDS).detach().clone()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
    for _ in range(15):
        optimizer.zero_grad()
        (layer(IDS) - 1).square().sum().backward()
        optimizer.step()
    rows = layer(IDS).detach()
    assert (rows - 1).square().sum() < (before - 1).square().sum()
    served = snapshot_of(layer)["table"].lookup(IDS.numpy())
    assert np.abs(rows.numpy() - served).max() <= (1e-5 if form in ROUNDED else 0)


@pytest.mark.parametrize("form", FORMS)
def test_bytes_equal_the_plan_the_snapshot_and_the_ratio(form: str) -> None:
    layer = _embedding(form)
    snapshot = snapshot_of(layer)
    assert layer.nbytes == snapshot.nbytes == sum(array.nbytes for array in snapshot.arrays.values())
    assert layer.nbytes * 6 <= 4 * N * D


@pytest.mark.parametrize("std", [1.0, 0.05])
@pytest.mark.parametrize("form", FORMS)
def test_initial_rows_have_the_standard_deviation_that_was_asked_for(form: str, std: float) -> None:
    layer = _embedding(form, std=std)
    own = layer.spec.private.dim if layer.spec.private is not None and form != "hash_embeddings" else None
    rows = layer.weight.detach()
    assert abs(float(rows[:, :own].std()) / std - 1) < 0.12
    if own is not None and own < D:
        assert 0.1 < float(rows[:, own:].std()) / std < 0.3, "what is shared beside an id's own entries starts small"


@pytest.mark.parametrize("form", FORMS)
def test_a_loaded_layer_gives_the_same_rows_and_trains_on(form: str, tmp_path) -> None:
    layer = _embedding(form)
    hnn.save(layer, tmp_path / "t.hfh")
    loaded = hnn.load(tmp_path / "t.hfh")["table"]
    assert torch.equal(loaded(IDS), layer(IDS))
    hnn.save(loaded, tmp_path / "again.hfh")
    with hfh_embed.open(tmp_path / "t.hfh") as one, hfh_embed.open(tmp_path / "again.hfh") as two:
        assert one["table"].lookup(np.arange(N)).tobytes() == two["table"].lookup(np.arange(N)).tobytes()
    loaded(IDS).square().sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


@pytest.mark.parametrize(
    "form",
    [
        Form(bits=32, locality=Locality.FREE, num_hashes=2, chunk_size=4),
        Form(bits=32, locality=Locality.WORDS, num_hashes=2, chunk_size=8),
        Form(bits=32, locality=Locality.LINE, num_hashes=2, chunk_size=3, latent_dim=6, private_bits=32, private_dim=1),
        Form(bits=32, num_hashes=2, chunk_size=8, residual_hidden=4),
        PRESETS["hfh"],
    ],
)
def test_gradients_pass_gradcheck(form: Form) -> None:
    layer = hnn.HFHEmbedding(60, 8, ratio=1.2, form=form).double()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    ids = torch.tensor([0, 5, 59, 5])

    def rows(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (ids,))

    assert torch.autograd.gradcheck(rows, parameters)


@pytest.mark.parametrize("form", ["line", "robe", "two-lines"])
def test_the_pools_gradient_equals_that_of_a_dense_table_of_the_same_addresses(form: str) -> None:
    layer = _embedding(form)
    upstream = torch.randn(len(IDS), D)
    (layer(IDS) * upstream).sum().backward()
    data = snapshot_of(layer)["table"].data
    _, where = reference.fetch(data, IDS.numpy())
    shared = data.table.shared
    slots = where.slots(shared.chunk_size).transpose(0, 1, 3, 2).reshape(len(IDS), -1, shared.num_hashes)[:, :D]
    signs = np.where(where.negative, -1.0, 1.0)[..., None] * np.ones(shared.chunk_size)
    signs = signs.transpose(0, 1, 3, 2).reshape(len(IDS), -1, shared.num_hashes)[:, :D]
    expected = np.zeros(data.pool.slots)
    np.add.at(expected, slots, signs * upstream.numpy()[:, :, None] * float(layer.table.scale))
    found = layer.pool.store.values.grad.numpy().reshape(-1)
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("include_last_offset", [False, True])
@pytest.mark.parametrize("padding_idx", [None, 5, -1])
def test_bags_equal_torch_over_the_same_rows(mode: str, include_last_offset: bool, padding_idx: int | None) -> None:
    options = {"mode": mode, "include_last_offset": include_last_offset, "padding_idx": padding_idx}
    bag = hnn.HFHEmbeddingBag(N, D, ratio=20, **options)
    weight = bag.weight.detach()
    if padding_idx is not None:
        weight = weight.clone()
    torchs = nn.EmbeddingBag.from_pretrained(weight, **options)
    ids, offsets = torch.tensor([5, 1, 2, 2, N - 1, 5, 9]), torch.tensor([0, 1, 1, 4, 7])
    assert torch.allclose(bag(ids, offsets), torchs(ids, offsets), atol=1e-6)
    assert torch.allclose(bag(ids.int(), offsets.int()), torchs(ids, offsets), atol=1e-6)
    two = torch.tensor([[1, 5], [7, 2]])
    assert torch.allclose(bag(two), torchs(two), atol=1e-6)
    empty = torch.empty(0, dtype=torch.long)
    assert torch.equal(bag(empty, torch.tensor([0, 0])), torchs(empty, torch.tensor([0, 0])))


def test_weighted_bags_equal_torch_and_give_the_weights_a_gradient() -> None:
    bag = hnn.HFHEmbeddingBag(N, D, ratio=20, mode="sum")
    torchs = nn.EmbeddingBag.from_pretrained(bag.weight.detach(), mode="sum")
    ids, offsets = torch.tensor([1, 2, 2, 3]), torch.tensor([0, 3])
    mine, others = (torch.tensor([0.5, -1, 2, 0], requires_grad=True) for _ in range(2))
    one, two = bag(ids, offsets, mine), torchs(ids, offsets, others)
    assert torch.allclose(one, two, atol=1e-6)
    one.square().sum().backward()
    two.square().sum().backward()
    assert torch.allclose(mine.grad, others.grad, rtol=1e-5)
    with pytest.raises(Exception, match="mode"):
        hnn.HFHEmbeddingBag(N, D, ratio=20, mode="mean")(ids, offsets, mine)


def test_the_padding_row_is_zero_and_gets_no_gradient() -> None:
    for form in ("line", "mixed", "exact", "levels"):
        layer = _embedding(form, padding_idx=-1)
        assert layer.padding_idx == N - 1
        rows = layer(torch.tensor([N - 1, N - 1]))
        assert not rows.any()
        rows.sum().backward()
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in layer.parameters())


def test_one_id_twice_in_a_batch_adds_up() -> None:
    layer = _embedding("line")
    layer(torch.tensor([7])).sum().backward()
    once = layer.pool.store.values.grad.clone()
    layer.zero_grad()
    layer(torch.tensor([7, 7])).sum().backward()
    assert torch.allclose(layer.pool.store.values.grad, 2 * once)


def test_shapes_and_dtypes_are_torchs() -> None:
    layer = hnn.HFHEmbedding(N, D, ratio=20)
    assert layer(torch.tensor(5)).shape == (D,)
    assert layer(torch.zeros(2, 3, dtype=torch.int32)).shape == (2, 3, D)
    assert layer(torch.empty(0, dtype=torch.long)).shape == (0, D)
    assert layer.weight.shape == (N, D)
    assert (layer.num_embeddings, layer.embedding_dim, layer.padding_idx) == (N, D, None)
    assert "ratio=20" in repr(layer)


@pytest.mark.parametrize("wrong", [-1, N, 2**40])
def test_ids_outside_raise_an_index_error(wrong: int) -> None:
    layer = hnn.HFHEmbedding(N, D, ratio=20)
    with pytest.raises(IndexError, match=str(wrong)) as caught:
        layer(torch.tensor([1, wrong]))
    assert isinstance(caught.value, UnknownIdError)
    with pytest.raises(TypeError, match="float32"):
        layer(torch.tensor([1.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_norm": 1.0}, "max_norm"),
        ({"norm_type": 1.0}, "norm_type"),
        ({"scale_grad_by_freq": True}, "scale_grad_by_freq"),
        ({"sparse": True}, "sparse"),
        ({"padding_idx": N}, "padding_idx"),
        ({"form": "magic"}, "is not known"),
        ({"ratio": 0.5}, "ratio"),
        ({"ratio": None}, "either a ratio"),
        ({"std": 0.0}, "std"),
    ],
)
def test_what_is_not_supported_is_refused(options, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        hnn.HFHEmbedding(N, D, **({"ratio": 20} | options))
    with pytest.raises(SpecError, match="mode"):
        hnn.HFHEmbeddingBag(N, D, ratio=20, mode="median")


def test_the_weight_cannot_be_set() -> None:
    with pytest.raises(AttributeError):
        hnn.HFHEmbedding(N, D, ratio=20).weight = torch.zeros(N, D)


def test_a_state_dict_comes_back() -> None:
    for form in ("line", "mixed-rows", "latent", "exact", "levels", "hfh"):
        one = _embedding(form)
        file = io.BytesIO()
        torch.save(one.state_dict(), file)
        file.seek(0)
        torch.manual_seed(77)
        two = hnn.HFHEmbedding(
            N, D, ratio=6, form=FORMS[form], frequencies=np.arange(N) if form in NEEDS_FREQUENCIES else None
        )
        two(IDS)
        assert not torch.equal(one(IDS), two(IDS))
        two.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(one(IDS), two(IDS))


def _two_tables() -> nn.ModuleDict:
    torch.manual_seed(3)
    pool = hnn.Pool.for_tables({"users": (N, D), "items": (500, 8)}, ratio=30, std=0.1)
    return nn.ModuleDict(
        {
            "a": hnn.HFHEmbedding(N, D, pool=pool, name="users"),
            "b": hnn.HFHEmbeddingBag(500, 8, pool=pool, name="items", mode="sum"),
        }
    )


def test_a_shared_pool_counts_once_and_stays_shared_in_a_copy() -> None:
    model = _two_tables()
    assert len(list(model.parameters())) == 1
    twin = copy.deepcopy(model)
    assert twin["a"].pool is twin["b"].pool
    assert twin["a"].pool is not model["a"].pool
    assert torch.equal(twin["a"](IDS), model["a"](IDS))


def test_a_shared_pool_is_stored_once(tmp_path) -> None:
    model = _two_tables()
    hnn.save(
        model, tmp_path / "m.hfh", vocabularies={"items": [f"item {n}" for n in range(500)]}, metadata={"run": "7"}
    )
    with hfh_embed.open(tmp_path / "m.hfh") as snapshot:
        assert set(snapshot) == {"users", "items"}
        assert len(snapshot.spec.pools) == 1
        assert snapshot.nbytes == model["a"].nbytes
        assert snapshot.metadata == {"run": "7"}
        assert snapshot["items"].ids_of(["item 7"]).tolist() == [7]
        bags = model["b"](torch.tensor([[1, 2], [3, 4]])).detach().numpy()
        assert np.allclose(snapshot["items"].bag([[1, 2], [3, 4]], mode="sum"), bags, atol=1e-6)
    loaded = hnn.load(tmp_path / "m.hfh")
    assert loaded["users"].pool is loaded["items"].pool


def test_unnamed_tables_are_saved_under_their_modules_names(tmp_path) -> None:
    model = nn.Sequential(hnn.HFHEmbedding(N, D, ratio=20), nn.Linear(D, 2))
    model.add_module("other", hnn.HFHEmbedding(N, D, ratio=20))
    hnn.save(model, tmp_path / "m.hfh")
    with hfh_embed.open(tmp_path / "m.hfh") as snapshot:
        assert set(snapshot) == {"0", "other"}
        assert snapshot["0"].lookup(IDS.numpy()).tobytes() == model[0](IDS).detach().numpy().tobytes()


def test_saving_what_cannot_be_saved_is_refused(tmp_path) -> None:
    with pytest.raises(SpecError, match="no HFH layers"):
        hnn.save(nn.Linear(2, 2), tmp_path / "m.hfh")
    twice = nn.ModuleList([hnn.HFHEmbedding(N, D, ratio=20, name="t"), hnn.HFHEmbedding(N, D, ratio=20, name="t")])
    with pytest.raises(SpecError, match="more than one table"):
        hnn.save(twice, tmp_path / "m.hfh")
    assert not list(tmp_path.iterdir())


def test_a_table_that_the_pool_was_not_planned_for_is_refused() -> None:
    pool = hnn.Pool.for_tables({"users": (N, D)}, ratio=30)
    with pytest.raises(SpecError, match="planned for"):
        hnn.HFHEmbedding(N, D + 1, pool=pool, name="users")
    with pytest.raises(KeyError, match="no table is named 'items'"):
        hnn.HFHEmbedding(N, D, pool=pool, name="items")
    with pytest.raises(SpecError, match="belong to the pool"):
        hnn.HFHEmbedding(N, D, pool=pool, name="users", seed=3)


def test_the_same_seed_gives_the_same_bits() -> None:
    def run() -> bytes:
        torch.manual_seed(5)
        layer = hnn.HFHEmbedding(N, D, ratio=20)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        for step in range(5):
            optimizer.zero_grad()
            layer(torch.arange(step, N, 7)).square().sum().backward()
            optimizer.step()
        return layer.pool.store.values.detach().numpy().tobytes()

    assert run() == run()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_amp_and_half_modules_work(dtype: torch.dtype) -> None:
    layer = _embedding("latent")
    with torch.autocast("cpu", dtype=dtype):
        out = nn.functional.linear(layer(IDS), torch.randn(3, D))
    assert out.dtype == dtype
    out.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
    small = _embedding("line").to(dtype)
    assert torch.isfinite(small(IDS)).all()


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_torch_compile_is_not_broken() -> None:
    layer = _embedding("line")
    compiled = torch.compile(layer, backend="eager")
    assert torch.equal(compiled(IDS), layer(IDS))


def test_from_pretrained_is_close_frozen_and_can_be_fine_tuned(tmp_path) -> None:
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2_000, 32, generator=generator) * torch.linspace(2, 0.05, 32)
    layer = hnn.HFHEmbedding.from_pretrained(weight, ratio=8, padding_idx=4)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    error = (layer.weight - weight)[5:].square().sum() / weight.square().sum()
    assert error < 0.1
    assert not layer(torch.tensor([4])).any()
    hnn.save(layer, tmp_path / "t.hfh")
    with hfh_embed.open(tmp_path / "t.hfh") as snapshot:
        rows = snapshot["table"].lookup(np.arange(2_000))
        assert snapshot.ratio >= 8
    assert np.allclose(rows, layer.weight.numpy(), atol=1e-5)
    tuned = hnn.HFHEmbedding.from_pretrained(weight, False, ratio=10)
    optimizer = torch.optim.Adam(tuned.parameters(), lr=3e-3)
    wanted = weight + 0.2  # what a task might want instead
    before = (tuned.weight - wanted).square().sum().item()
    for _ in range(20):
        optimizer.zero_grad()
        (tuned.weight - wanted).square().sum().backward()
        optimizer.step()
    assert (tuned.weight - wanted).square().sum().item() < 0.9 * before
    bag = hnn.HFHEmbeddingBag.from_pretrained(weight, mode="sum", ratio=8)
    assert torch.allclose(bag(torch.tensor([[1, 2]])), layer.weight[[1, 2]].sum(0), atol=1e-5)


@pytest.mark.parametrize("ratio", [7, 16])
def test_rows_of_zeros_of_a_pretrained_table_are_zeros_with_finite_gradients(ratio: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 24)[torch.randint(0, 40, (4_000,))] + 0.1 * torch.randn(4_000, 24)
    weight[[3, 9]] = 0
    layer = hnn.HFHEmbedding.from_pretrained(weight, False, ratio=ratio)
    rows = layer(torch.tensor([3, 9, 4]))
    assert not rows[:2].any()
    assert torch.isfinite(rows).all()
    rows.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


def test_linear_and_conv_layers_train_on_one_pool() -> None:
    pool = hnn.Pool.for_tables({"fc": (10, 64), "conv": (8, 27)}, ratio=4, form="hashed_nets", std=0.1)
    conv = hnn.HFHConv2d(3, 8, 3, padding=1, pool=pool, name="conv")
    linear = hnn.HFHLinear(64, 10, pool=pool, name="fc")
    images = torch.randn(5, 3, 4, 4)
    expected = nn.functional.conv2d(images, conv.weight.view(8, 3, 3, 3), conv.bias, padding=1)
    assert torch.allclose(conv(images), expected)
    rows = torch.randn(5, 64)
    assert torch.allclose(linear(rows), rows @ linear.weight.T + linear.bias)
    (conv(images).sum() + linear(rows).sum()).backward()
    assert pool.store.values.grad.any()
