"""The tiled output layer against dense logits and ``F.cross_entropy``."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import hfh_embed
from hfh_embed import nn as hnn
from hfh_embed.budget import Form
from hfh_embed.errors import InputError, RatioError, SpecError
from hfh_embed.nn import compiled_head, generation, tiles
from hfh_embed.nn.io import snapshot_of
from hfh_embed.spec import Locality, Reconstruction

V, D, B = 203, 40, 37
FORMS = {
    "line": Form(),
    "four-words": Form(num_hashes=4, chunk_size=128),
    "floats": Form(bits=32, locality=Locality.FREE, num_hashes=2, chunk_size=4),
    "mixed": Form(private_bits=2),
    "rows": Form(shared=False, private_bits=2, row_scale=True),
    "map": Form(latent_dim=16, residual_hidden=8, bits=2),
    "levels": Form(level_share=0.6),
    "levels-alone": Form(shared=False, level_share=1, level_cover=1, level_count=4, level_map_bits=32),
    "mlp": Form(
        bits=32, locality=Locality.FREE, num_hashes=4, chunk_size=1, reconstruction=Reconstruction.MLP, hidden=4
    ),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[(2**18, 512), (7 * D, 5), (64 * D, 16)], ids=["whole", "odd", "small"])
def _tiled(request, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles and blocks of several sizes."""
    monkeypatch.setitem(tiles.TILE_FLOATS, "cpu", request.param[0])
    monkeypatch.setattr(tiles, "BLOCK", request.param[1])


def _head(form: str = "line", **options) -> hnn.VocabularyHead:
    torch.manual_seed(1)
    if FORMS[form].level_share:
        options["frequencies"] = np.random.default_rng(0).permutation(1 / (1.0 + np.arange(V)))
    return hnn.VocabularyHead(V, D, ratio=options.pop("ratio", 3), form=FORMS[form], **options)


def _batch(dtype: torch.dtype = torch.float32, ignored: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(B, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (B,), generator=generator)
    targets[:3] = torch.tensor([0, V - 1, V - 1])
    if ignored:
        targets[5:9] = -100
    return hidden, targets


def _dense_loss(head: hnn.VocabularyHead, hidden, targets, z_loss: float = 0.0, reduction: str = "mean", **options):
    logits = functional.linear(hidden, head.weight, head.bias)
    loss = functional.cross_entropy(logits, targets, reduction=reduction, **options)
    if z_loss:
        kept = targets != options.get("ignore_index", -100)
        square = z_loss * torch.where(kept, logits.logsumexp(1).square(), 0)
        loss = loss + {"mean": square.sum() / kept.sum(), "sum": square.sum(), "none": square}[reduction]
    return loss


def _grads(module: nn.Module, hidden: torch.Tensor) -> list[torch.Tensor]:
    found = [hidden.grad, *(p.grad for p in module.parameters())]
    hidden.grad = None
    module.zero_grad()
    return found


def _assert_close(mine, dense) -> None:
    """Within float32 rounding of sums whose terms are as large as the largest gradient: a network's may cancel."""
    bound = 2e-5 * max(float(grad.abs().max()) for grad in dense if grad is not None)
    for one, other in zip(mine, dense, strict=True):
        if one is None or other is None:
            assert (one is None or not one.any()) and (other is None or not other.any())
            continue
        worst = float((one - other).abs().max())
        assert worst <= bound, (worst, bound)


@pytest.mark.usefixtures("_tiled")
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_the_dense_weight(form: str) -> None:
    head, (hidden, _) = _head(form, bias=torch.randn(V), padding_idx=3), _batch()
    weight = torch.randn(B, V, generator=torch.Generator().manual_seed(2))
    (head(hidden) * weight).sum().backward()
    mine = _grads(head, hidden)
    dense = functional.linear(hidden, head.weight, head.bias)
    assert torch.allclose(head(hidden), dense, atol=1e-5)
    (dense * weight).sum().backward()
    _assert_close(mine, _grads(head, hidden))


@pytest.mark.usefixtures("_tiled")
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-2}, {"label_smoothing": 0.3, "z_loss": 0.1}]
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_are_those_of_dense_cross_entropy(form: str, reduction: str, options: dict) -> None:
    head, (hidden, targets) = _head(form, bias=torch.randn(V), padding_idx=3), _batch()
    upstream = torch.rand(B) if reduction == "none" else torch.tensor(1.5)
    loss = head.loss(hidden, targets, reduction=reduction, **options)
    (loss * upstream).sum().backward()
    mine = _grads(head, hidden)
    dense = _dense_loss(head, hidden, targets, reduction=reduction, **options)
    assert torch.allclose(loss, dense, rtol=2e-6, atol=2e-6)
    (dense * upstream).sum().backward()
    _assert_close(mine, _grads(head, hidden))


@pytest.mark.parametrize("form", ["floats", "mlp", "dense-rows", "latent"])
def test_loss_passes_gradcheck(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = FORMS | {
        "dense-rows": Form(shared=False, private_bits=32),
        "latent": Form(
            bits=32, num_hashes=2, chunk_size=8, latent_dim=5, residual_hidden=3, private_bits=32, private_dim=2
        ),
    }
    monkeypatch.setitem(tiles.TILE_FLOATS, "cpu", 7 * 8)
    monkeypatch.setattr(tiles, "BLOCK", 4)
    torch.manual_seed(3)
    head = hnn.VocabularyHead(
        23, 7, ratio=1.0 if form in ("dense-rows", "latent") else 1.1, form=forms[form], std=0.5
    ).double()
    hidden = torch.randn(9, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 22, 5, 5, -100, 7, 13, 22, 1])
    parameters = [p for p in head.parameters() if p.requires_grad]

    def loss(hidden: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return head.loss(hidden, targets, label_smoothing=0.1, z_loss=0.05, reduction="none")

    assert torch.autograd.gradcheck(loss, (hidden, *parameters))


def test_tokens_in_any_shape_and_int32_targets() -> None:
    head, (hidden, targets) = _head(), _batch(ignored=False)
    boxed = hidden[:36].view(3, 4, 3, D)
    assert torch.equal(head(boxed).view(36, V), head(hidden[:36]))
    losses = head.loss(boxed, targets[:36].view(3, 4, 3).int(), reduction="none")
    assert losses.shape == (3, 4, 3)
    assert torch.allclose(losses.view(-1), head.loss(hidden[:36], targets[:36], reduction="none"))
    assert head.topk(boxed, 3)[1].shape == (3, 4, 3, 3)
    assert head.sample(boxed).shape == (3, 4, 3)
    assert torch.allclose(head.loss(hidden[0], targets[0]), _dense_loss(head, hidden[:1], targets[:1]))


def test_a_tied_head_and_its_embedding_add_their_gradients_on_one_pool() -> None:
    torch.manual_seed(1)
    emb = hnn.HFHEmbedding(V, D, ratio=3, std=0.2, padding_idx=0)
    head = hnn.VocabularyHead(V, D, tie=emb)
    assert head.table is emb.table and head.padding_idx == 0 and head.nbytes == emb.nbytes
    model = nn.ModuleList([emb, head])
    assert len(list(model.parameters())) == len(list(emb.parameters()))
    ids = torch.randint(0, V, (B,))
    targets = torch.randint(0, V, (B,))
    head.loss(emb(ids), targets).backward()
    mine = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    functional.cross_entropy(functional.linear(emb(ids), emb.weight), targets).backward()
    _assert_close(mine, [p.grad for p in model.parameters()])


@pytest.mark.parametrize("optimizer", [hnn.PoolAdam, hnn.PoolSGD])
def test_pool_optimizers_step_on_what_embedding_and_head_left(optimizer: type) -> None:
    def run(dense: bool) -> torch.Tensor:
        torch.manual_seed(1)
        emb = hnn.HFHEmbedding(V, D, ratio=3, std=0.2)
        head = hnn.VocabularyHead(V, D, tie=emb)
        steps = optimizer(emb, lr=0.05)
        for step in range(3):
            ids = torch.randint(0, V, (B,), generator=torch.Generator().manual_seed(step))
            steps.zero_grad()
            if dense:
                loss = functional.cross_entropy(functional.linear(emb(ids), emb.weight), ids.flip(0))
            else:
                loss = head.loss(emb(ids), ids.flip(0))
            loss.backward()
            steps.step()
        return emb.pool.store.values.detach()

    mine, dense = run(False), run(True)
    assert torch.allclose(mine, dense, atol=2e-3) and (mine - dense).abs().mean() < 1e-5


def test_frozen_parts_get_no_gradient() -> None:
    head, (hidden, targets) = _head("mixed", bias=True), _batch()
    head.table.private.requires_grad_(False)
    head.bias.requires_grad_(False)
    head.loss(hidden.detach(), targets).backward()
    assert head.bias.grad is None and head.table.private.values.grad is None
    assert head.pool.store.values.grad is not None
    head.requires_grad_(False)
    head.loss(hidden, targets).backward()
    assert hidden.grad is not None
    assert not head.loss(hidden.detach(), targets).requires_grad


def test_values_changed_between_loss_and_backward_are_noticed() -> None:
    head, (hidden, targets) = _head(), _batch()
    loss = head.loss(hidden, targets)
    with torch.no_grad():
        head.pool.store.values.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_all_ignored_costs_nothing_and_has_zero_gradients() -> None:
    head, (hidden, targets) = _head(bias=True), _batch()
    for reduction in ("mean", "sum", "none"):
        loss = head.loss(hidden, torch.full_like(targets, 7), ignore_index=7, reduction=reduction)
        assert not loss.any()
        loss.sum().backward()
        for grad in _grads(head, hidden):
            assert grad is not None and not grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_as_close_as_dense_low_precision(dtype: torch.dtype) -> None:
    head, (hidden, targets) = _head(std=0.3), _batch()
    exact = _dense_loss(head, hidden, targets)
    exact.backward()
    wanted = _grads(head, hidden)
    low = hidden.detach().to(dtype).requires_grad_()
    loss = head.loss(low, targets)
    loss.backward()
    mine = _grads(head, low)
    assert loss.dtype == torch.float32 and mine[0].dtype == dtype and mine[1].dtype == torch.float32
    functional.cross_entropy((low @ head.weight.to(dtype).T).float(), targets).backward()
    dense = _grads(head, low)
    for one, other, best in zip(mine, dense, wanted, strict=True):
        error, peer = ((g.float() - best).abs().mean() for g in (one, other))
        assert error <= 2 * peer + 1e-7, (error, peer)


def test_autocast_computes_products_in_its_dtype() -> None:
    head, (hidden, targets) = _head(std=0.3), _batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, logits = head.loss(hidden, targets), head(hidden)
        best = head.topk(hidden, 2)[0]
    assert logits.dtype == torch.bfloat16 and loss.dtype == best.dtype == torch.float32
    low = head.loss(hidden.bfloat16(), targets)
    assert torch.equal(loss, low)
    loss.backward()
    assert hidden.grad.dtype == torch.float32


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation made, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_flatten(out)[0]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.untyped_storage().nbytes() // value.element_size())
        return out


@pytest.mark.parametrize("form", ["line", "map", "rows"])
def test_neither_the_table_nor_the_logits_are_ever_held(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiles.TILE_FLOATS, "cpu", 2**16)
    monkeypatch.setattr(compiled_head, "TILE_FLOATS", 2**16)
    monkeypatch.setattr(tiles, "BLOCK", 64)
    monkeypatch.setattr(generation, "CANDIDATES", 2**16)
    rows, tokens = 20_000, 200
    head = hnn.VocabularyHead(
        rows,
        D,
        ratio=60 if form == "line" else 20,
        form=FORMS[form] if form != "rows" else Form(shared=False, private_bits=1, private_dim=8, latent_dim=8),
    )
    hidden = torch.randn(tokens, D, requires_grad=True)
    targets = torch.randint(0, rows, (tokens,))
    parameters = max(p.numel() for p in head.parameters())
    with _Largest() as seen:
        head.loss(hidden, targets, label_smoothing=0.1).backward()
        head.topk(hidden, 5)
        head.sample(hidden, top_p=0.5)
        head.sample(hidden)
    assert seen.elements <= max(parameters, 2**18) < min(rows * D, rows * tokens)


def test_topk_is_that_of_all_logits() -> None:
    head, (hidden, _) = _head(bias=torch.randn(V)), _batch()
    for size in (2**18, 7 * D):
        tiles.TILE_FLOATS["cpu"], before = size, tiles.TILE_FLOATS["cpu"]
        try:
            for k in (1, 5, V):
                values, ids = head.topk(hidden, k)
                wanted = head(hidden).topk(k)
                assert torch.allclose(values, wanted.values, atol=1e-5)
                assert torch.allclose(head(hidden).gather(1, ids), values, atol=1e-5)
                assert all(len(set(row)) == k for row in ids.tolist())
        finally:
            tiles.TILE_FLOATS["cpu"] = before


def _distribution(logits: torch.Tensor, temperature: float, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """Probabilities by the plain definition: sort, cut, renormalise."""
    p = (logits.double() / temperature).softmax(0)
    order = p.argsort(descending=True)
    if top_k is not None:
        p[order[top_k:]] = 0
        p = p / p.sum()
    if top_p is not None:
        before = p[order].cumsum(0) - p[order]
        p[order[before >= top_p]] = 0
    return p / p.sum()


@pytest.mark.usefixtures("_tiled")
@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (7, None), (None, 0.6), (20, 0.8), (None, 1.0), (1, None)])
def test_samples_have_the_distribution_of_the_logits(
    temperature, top_k, top_p, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "NUCLEUS", 8)
    head, (hidden, _) = _head(std=0.2, bias=torch.randn(V)), _batch()
    draws = 5_000
    generator = torch.Generator().manual_seed(9)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    drawn = head.sample(hidden[:1].expand(draws, D), **options)
    wanted = _distribution(head(hidden[0]).detach(), temperature, top_k, top_p)
    found = torch.bincount(drawn, minlength=V) / draws
    assert not found[wanted == 0].any()
    deviation = (found - wanted).abs() / (wanted * (1 - wanted) / draws + 1e-6).sqrt()
    assert deviation.max() < 5, deviation.max()


def test_temperature_zero_is_greedy_and_generators_repeat() -> None:
    head, (hidden, _) = _head(std=0.2), _batch()
    assert torch.equal(head.sample(hidden, temperature=0), head.topk(hidden, 1)[1][:, 0])
    one, two = (head.sample(hidden, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert head.sample(hidden[:0]).shape == (0,) and head.topk(hidden[:0], 2)[1].shape == (0, 2)


def test_bad_input_is_refused_by_what_it_is() -> None:
    head, (hidden, targets) = _head(), _batch()
    wrong = targets.clone()
    wrong[4] = V
    with pytest.raises(InputError, match=f"target {V} at position 4"):
        head.loss(hidden, wrong)
    wrong[4] = -1
    with pytest.raises(InputError, match="target -1 at position 4"):
        head.loss(hidden, wrong)
    with pytest.raises(InputError, match="no tokens"):
        head.loss(hidden[:0], targets[:0])
    with pytest.raises(InputError, match="give floats"):
        head(hidden.long())
    with pytest.raises(InputError, match="convert one"):
        head(hidden.double())
    with pytest.raises(InputError, match="last size must be 40"):
        head(hidden[:, :3])
    with pytest.raises(InputError, match="one target for each"):
        head.loss(hidden, targets[1:])
    with pytest.raises(InputError, match="int32 or int64"):
        head.loss(hidden, targets.float())
    with pytest.raises(InputError, match="reduction"):
        head.loss(hidden, targets, reduction="max")
    with pytest.raises(InputError, match="label_smoothing"):
        head.loss(hidden, targets, label_smoothing=1.5)
    with pytest.raises(InputError, match="z_loss"):
        head.loss(hidden, targets, z_loss=float("nan"))
    for k in (0, V + 1, True):
        with pytest.raises(InputError, match="size of the vocabulary"):
            head.topk(hidden, k)
    with pytest.raises(InputError, match="temperature"):
        head.sample(hidden, temperature=-1)
    with pytest.raises(InputError, match="top_p"):
        head.sample(hidden, top_p=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_hidden_states_that_are_not_finite_are_named_and_leave_the_pool_alone(value: float) -> None:
    head, (hidden, targets) = _head(), _batch()
    broken = hidden.detach().clone()
    broken[[3, 11], 2] = value
    broken.requires_grad_()
    for call in (lambda: head.loss(broken, targets), lambda: head.topk(broken, 1), lambda: head.sample(broken)):
        with pytest.raises(InputError, match="2 of 37 hidden states are not finite, in rows 3, 11"):
            call()
    assert head.pool.store.values.grad is None


def test_ties_that_cannot_be_are_refused() -> None:
    emb = hnn.HFHEmbedding(V, D, ratio=3)
    other = hnn.Pool.for_tables({"table": (V, D)}, 3)
    with pytest.raises(SpecError, match="another pool"):
        hnn.VocabularyHead(V, D, tie=emb, pool=other)
    with pytest.raises(SpecError, match="same sizes"):
        hnn.VocabularyHead(V, D + 1, tie=emb)
    with pytest.raises(SpecError, match="ratio: a tied head"):
        hnn.VocabularyHead(V, D, tie=emb, ratio=3)
    with pytest.raises(SpecError, match="padding_idx is 1"):
        hnn.VocabularyHead(V, D, tie=emb, padding_idx=1)
    with pytest.raises(SpecError, match="give an HFH embedding"):
        hnn.VocabularyHead(V, D, tie=nn.Embedding(V, D))
    with pytest.raises(SpecError, match="name is 'x'"):
        hnn.VocabularyHead(V, D, tie=emb, name="x")
    with pytest.raises(SpecError, match="shape"):
        hnn.VocabularyHead(V, D, tie=emb, bias=torch.zeros(3))
    assert hnn.VocabularyHead(V, D, tie=emb, pool=emb.pool, name="table").tied


def test_a_bias_counts_in_the_ratio() -> None:
    head = _head(bias=True, ratio=8)
    assert head.nbytes * 8 <= 4 * V * (D + 1) and head.ratio >= 8
    assert head.nbytes == snapshot_of(head).nbytes
    with pytest.raises(RatioError, match="bias alone") as refused:
        _head(bias=True, ratio=50)
    assert _head(bias=True, ratio=refused.value.nearest).ratio >= refused.value.nearest


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_head_is_served_and_loads_again(tied: bool, tmp_path) -> None:
    torch.manual_seed(1)
    model = nn.Module()
    if tied:
        model.emb = hnn.HFHEmbedding(V, D, ratio=3, std=0.2)
        model.head = hnn.VocabularyHead(V, D, tie=model.emb, bias=torch.randn(V))
        name = "emb"
    else:
        model.head = _head(bias=torch.randn(V))
        name = "head"
    hnn.save(model, tmp_path / "lm.hfh")
    with hfh_embed.open(tmp_path / "lm.hfh") as snapshot:
        assert sorted(table.name for table in snapshot.spec.tables) == [name, f"{name}.bias"]
        rows = snapshot[name].lookup(np.arange(V))
        assert rows.tobytes() == model.head.weight.detach().numpy().tobytes()
        assert np.array_equal(snapshot[f"{name}.bias"].lookup(np.arange(V))[:, 0], model.head.bias.detach().numpy())
    tables = hnn.load(tmp_path / "lm.hfh")
    again = hnn.VocabularyHead(V, D, tie=tables[name], bias=tables[f"{name}.bias"].weight[:, 0])
    hidden, targets = _batch()
    assert torch.equal(again(hidden), model.head(hidden))
    assert torch.equal(again.loss(hidden, targets), model.head.loss(hidden, targets))


def test_state_dicts_bring_a_head_back() -> None:
    head, (hidden, targets) = _head("mixed", bias=torch.randn(V)), _batch()
    torch.manual_seed(7)
    other = hnn.VocabularyHead(V, D, ratio=3, form=FORMS["mixed"], bias=True)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.loss(hidden, targets), head.loss(hidden, targets))
