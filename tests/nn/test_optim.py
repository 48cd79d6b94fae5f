"""Pool optimizers against torch's own, and what they do with threads, checkpoints and pools of other forms."""

import copy
import gc

import pytest
import torch
from torch import nn

from hfh_embed import nn as hnn
from hfh_embed.errors import SpecError
from hfh_embed.kernels import backends
from hfh_embed.nn.io import snapshot_of
from hfh_embed.spec import LINE_BITS
from tests.nn.test_compiled import IDS, LINES, _loss, _model, _pool, through_a_file

pytestmark = pytest.mark.skipif("native" not in backends(), reason="the compiled kernels are not installed")

MAKES = {"sgd": lambda pools: hnn.PoolSGD(pools, lr=0.05), "adam": lambda pools: hnn.PoolAdam(pools, lr=0.02)}
OTHERS = ["words-2", "words-4", "free-1", "line-8", "aligned-32", "words-16"]


def _step(model: nn.ModuleList, optimizer: torch.optim.Optimizer, seed: int) -> torch.Tensor:
    optimizer.zero_grad()
    loss = _loss(model, seed)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _values(model: nn.ModuleList) -> torch.Tensor:
    return _pool(model).store.values.detach()


def _linear_loss(model: nn.ModuleList, seed: int) -> torch.Tensor:
    """Its gradient is the same for other values, so that a difference in rounding does not grow."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(())
    for layer in model:
        rows = layer(torch.randint(0, 500, (60,), generator=generator))
        total = total + (rows * torch.randn(rows.shape, generator=generator)).sum()
    return total


@pytest.mark.parametrize(("form", "dims"), [*((form, (40, 130, 64)) for form in LINES), ("eight-words", (20, 64, 130))])
def test_pool_sgd_equals_torchs(form: str, dims: tuple[int, ...]) -> None:
    mine, torchs = _model(form, dims=dims), _model(form, dims=dims)
    one, two = hnn.PoolSGD(mine, lr=0.05), torch.optim.SGD([_pool(torchs).store.values], lr=0.05)
    for seed in range(5):
        for model, optimizer in ((mine, one), (torchs, two)):
            optimizer.zero_grad()
            _linear_loss(model, seed).backward()
            optimizer.step()
        assert torch.allclose(_values(mine), _values(torchs), rtol=1e-5, atol=1e-6)
        assert _pool(mine).store.values.grad is None
    assert torch.allclose(mine[0](IDS), torchs[0](IDS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", LINES)
@pytest.mark.parametrize(
    "options", [{}, {"lr": 0.03, "betas": (0.5, 0.9), "eps": 1e-3}, {"betas": (0.0, 0.0), "eps": 1e-2}]
)
def test_pool_adam_equals_torchs_sparse_adam_on_lines(form: str, options: dict) -> None:
    model, dense = _model(form), _model(form)
    optimizer = hnn.PoolAdam(model, **options)
    lines = nn.Parameter(_values(model).clone().view(-1, LINE_BITS))
    sparse = torch.optim.SparseAdam([lines], **options)
    for seed in range(6):
        optimizer.zero_grad()
        _linear_loss(model, seed).backward()
        optimizer.step()
        with torch.no_grad():
            _pool(dense).store.values.copy_(lines.view(1, -1))
        dense.zero_grad()
        _linear_loss(dense, seed).backward()
        gradient = _pool(dense).store.values.grad.view(-1, LINE_BITS)
        touched = gradient.any(dim=1).nonzero().T
        assert 0 < touched.numel() <= len(gradient)
        lines.grad = torch.sparse_coo_tensor(
            touched, gradient[touched[0]], gradient.shape, check_invariants=True, is_coalesced=True
        )
        sparse.step()
        step_size = options.get("lr", 1e-3)
        assert (_values(model).view(-1, LINE_BITS) - lines).abs().max() < 2e-3 * step_size * (seed + 1)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("form", [*LINES, *OTHERS, "private"])
def test_training_lowers_the_loss_and_rows_equal_the_snapshot(form: str, make: str) -> None:
    model = _model(form)
    optimizer, losses = MAKES[make](model), []
    for _ in range(12):
        optimizer.zero_grad()
        loss = sum((layer(IDS) - 0.5).square().mean() for layer in model)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        table = snapshot_of(model)["t0"]
        assert model[0](IDS).detach().numpy().tobytes() == table.lookup(IDS.numpy()).tobytes()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("form", [*LINES, "words-4"])
def test_the_same_bits_for_any_number_of_threads(form: str, make: str) -> None:
    before, found = torch.get_num_threads(), []
    ids = torch.randint(0, 500, (9_000,), generator=torch.Generator().manual_seed(0))
    upstream = torch.randn(9_000, 40, generator=torch.Generator().manual_seed(1))
    try:
        for threads in (1, 2, 3, 8, 1):
            torch.set_num_threads(threads)
            model = _model(form)
            optimizer = MAKES[make](model)
            for _ in range(3):
                optimizer.zero_grad()
                model[0](ids).backward(upstream)
                optimizer.step()
            sums = optimizer.state[_pool(model).store.values].get("sum_of_squares")
            found.append((_values(model).numpy().tobytes(), model[0](IDS).detach().numpy().tobytes(), sums))
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("form", [*LINES, "words-4"])
def test_a_checkpoint_goes_on_with_the_same_bits(form: str, make: str) -> None:
    model = _model(form)
    optimizer = MAKES[make](model)
    for seed in range(4):
        _step(model, optimizer, seed)
    saved = through_a_file(model, optimizer)
    again = _model(form, seed=5)
    other = MAKES[make](again)
    _step(again, other, 9)  # one that was in use before must forget what it was
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    for seed in range(4, 8):
        assert torch.equal(_step(model, optimizer, seed), _step(again, other, seed))
        assert torch.equal(_values(model), _values(again))
        assert torch.equal(model[0](IDS), again[0](IDS))


@pytest.mark.parametrize("make", MAKES)
def test_values_changed_between_steps_keep_their_own_scale(make: str) -> None:
    model = _model("eight-words")
    optimizer = MAKES[make](model)
    _step(model, optimizer, 0)
    with torch.no_grad():
        _pool(model).store.values.mul_(10)
    _step(model, optimizer, 1)
    half_step = float(_pool(model).store.table_half_step())
    twin = copy.deepcopy(model)  # it finds the scale by looking at the values
    with torch.no_grad():
        _pool(twin).store.values.add_(0)
    assert abs(half_step / float(_pool(twin).store.table_half_step()) - 1) < 1e-6


@pytest.mark.parametrize("make", MAKES)
def test_gradients_add_up_until_they_are_forgotten(make: str) -> None:
    def trained(*batches: tuple[int, ...]) -> torch.Tensor:
        model = _model("eight-words")
        optimizer = MAKES[make](model)
        for batch in batches:
            optimizer.zero_grad()
            for seed in batch:
                _linear_loss(model, seed).backward()
        optimizer.step()
        return _values(model)

    together = _model("eight-words")
    optimizer = MAKES[make](together)
    (_linear_loss(together, 1) + _linear_loss(together, 2)).backward()
    optimizer.step()
    assert torch.allclose(trained((1, 2)), _values(together), atol=1e-5)
    assert torch.equal(trained((7, 8), (1, 2)), trained((1, 2)))
    assert not torch.equal(trained((1,)), trained((1, 2)))


def test_a_step_without_gradients_changes_nothing() -> None:
    model = _model("eight-words")
    optimizer = hnn.PoolSGD(model, lr=0.1)
    before = _values(model).clone()
    optimizer.step()
    _linear_loss(model, 0).backward()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(_values(model), before)


@pytest.mark.parametrize("make", MAKES)
def test_ids_may_be_overwritten_before_the_step(make: str) -> None:
    def trained(overwrite: bool) -> torch.Tensor:
        model = _model("eight-words")
        optimizer = MAKES[make](model)
        ids = torch.arange(60)
        model[0](ids).sum().backward()
        if overwrite:
            ids.fill_(500)
        optimizer.step()
        return _values(model)

    assert torch.equal(trained(True), trained(False))


@pytest.mark.parametrize("make", MAKES)
def test_a_gradient_of_the_whole_pool_counts_too(make: str) -> None:
    """Rows by lines and torch's own operations over one pool, as where a table weighs what it fetches."""

    def trained(lines: bool) -> torch.Tensor:
        model = _model("eight-words")
        optimizer = MAKES[make](model)
        if lines:
            _linear_loss(model, 0).backward()
        values = _pool(model).store.values
        (values * torch.arange(values.numel()).fmod(3)).sum().backward()
        before = values.detach().clone()
        optimizer.step()
        return values.detach() - before

    alone, both = trained(False), trained(True)
    assert alone.any() and both.any() and not torch.allclose(alone, both)
    assert (both[..., 1] != 0).all()


def test_a_pool_whose_optimizer_is_gone_gets_ordinary_gradients() -> None:
    model = _model("eight-words")
    values = _pool(model).store.values
    optimizer = hnn.PoolSGD(model, lr=0.1)
    _linear_loss(model, 0).backward()
    assert values.grad is None
    optimizer.zero_grad()
    del optimizer
    gc.collect()
    _linear_loss(model, 0).backward()
    ordinary = _model("eight-words")
    _linear_loss(ordinary, 0).backward()
    assert torch.equal(values.grad, _pool(ordinary).store.values.grad)


def test_what_a_pool_optimizer_may_be_given() -> None:
    model = _model("eight-words")
    before = _values(model).clone()
    for pools in (model, _pool(model), [_pool(model)], iter([_pool(model), _pool(model)])):
        assert len(hnn.PoolSGD(pools, lr=0.1).param_groups[0]["params"]) == 1
    closed = hnn.PoolSGD(model, lr=0.1)

    def closure() -> torch.Tensor:
        closed.zero_grad()
        loss = _linear_loss(model, 0)
        loss.backward()
        return loss

    assert closed.step(closure).requires_grad
    assert not torch.equal(_values(model), before)


@pytest.mark.parametrize("lr", [0, -1, float("nan")])
def test_a_learning_rate_that_is_not_positive_is_refused(lr: float) -> None:
    for kind in (hnn.PoolSGD, hnn.PoolAdam):
        with pytest.raises(SpecError, match="lr is"):
            kind(_model("eight-words"), lr=lr)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, -0.1), (float("nan"), 0.9)])
def test_betas_outside_their_range_are_refused(betas: tuple[float, float]) -> None:
    with pytest.raises(SpecError, match="betas are"):
        hnn.PoolAdam(_model("eight-words"), betas=betas)


@pytest.mark.parametrize("eps", [0, -1e-8, float("nan")])
def test_an_epsilon_that_is_not_positive_is_refused(eps: float) -> None:
    with pytest.raises(SpecError, match="eps is"):
        hnn.PoolAdam(_model("eight-words"), eps=eps)


@pytest.mark.parametrize("pools", [[], nn.Linear(2, 2)])
def test_nothing_to_optimize_is_refused(pools) -> None:
    with pytest.raises(SpecError, match="no pool"):
        hnn.PoolSGD(pools, lr=0.1)
