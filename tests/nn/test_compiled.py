"""The compiled path in training: the rows of the saved snapshot, and the gradients of plain torch."""

import copy
import io
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hfh_embed import nn as hnn
from hfh_embed.budget import Form
from hfh_embed.kernels import backends
from hfh_embed.nn.compiled import CompiledPool
from hfh_embed.nn.io import snapshot_of
from hfh_embed.spec import Locality

pytestmark = pytest.mark.skipif("native" not in backends(), reason="the compiled kernels are not installed")

N = 501
SIZES = {Locality.FREE: (3, 7), Locality.ALIGNED: (2, 8), Locality.LINE: (3, 5), Locality.WORDS: (4, 4)}
FORMS = {
    f"{locality.value}-{bits}": Form(bits=bits, locality=locality, num_hashes=hashes, chunk_size=size)
    for bits in (1, 2, 4, 8, 16, 32)
    for locality, (hashes, size) in SIZES.items()
}
FORMS |= {
    "eight-words": Form(),
    "four-words": Form(num_hashes=4, chunk_size=128),
    "sixteen-words": Form(num_hashes=16, chunk_size=32),
    "private": Form(private_bits=2),
}
LINES = ("eight-words", "four-words", "sixteen-words")
IDS = torch.tensor([[0, 3, N - 1], [17, 17, 123]])


def _model(form: str, seed: int = 1, dims: tuple[int, ...] = (40, 130, 64)) -> nn.ModuleList:
    """Tables of different sizes over one pool."""
    torch.manual_seed(seed)
    tables = {f"t{k}": (N + k, dim) for k, dim in enumerate(dims)}
    pool = hnn.Pool.for_tables(tables, 6, form=FORMS[form])
    return nn.ModuleList(hnn.HFHEmbedding(rows, dim, pool=pool, name=name) for name, (rows, dim) in tables.items())


def _pool(model: nn.ModuleList) -> hnn.Pool:
    return model[0].table.pool


def through_a_file(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Both states, as a checkpoint gives them back."""
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _loss(model: nn.ModuleList, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(())
    for layer in model:
        ids = torch.randint(0, N, (90,), generator=generator)
        rows = layer(torch.cat((ids, ids[:7])))
        total = total + (rows * torch.randn(rows.shape, generator=generator)).sum() + 0.1 * rows.square().sum()
    return total


def _grads(model: nn.ModuleList) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch):
    """Switch a model's compiled path off: everything goes through torch's own operations."""

    def switch() -> None:
        monkeypatch.setattr(CompiledPool, "serves", staticmethod(lambda pool: False))

    return switch


def _close(mine: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=2e-6 * float(b.abs().max() + 1)) for a, b in zip(mine, others, strict=True)
    )


@pytest.mark.parametrize("form", FORMS)
def test_rows_in_training_are_those_of_the_snapshot_bit_for_bit(form: str) -> None:
    model = _model(form)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(3):
        assert _pool(model).compiled_path() is not None
        served = snapshot_of(model)["t1"]
        assert model[1](IDS).detach().numpy().tobytes() == served.lookup(IDS.numpy()).tobytes()
        optimizer.zero_grad()
        _loss(model, step).backward()
        optimizer.step()


def _check_gradients(model: nn.ModuleList, plain) -> None:
    """Those of the compiled path against those of torch, which ``plain`` switches to."""
    _loss(model).backward()
    compiled = _grads(model)
    model.zero_grad()
    plain()
    _loss(model).backward()
    assert _close(compiled, _grads(model))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_those_of_plain_torch(form: str, plain) -> None:
    model = _model(form)
    _check_gradients(model, plain)


def test_gradients_of_rows_of_all_lengths_over_one_pool_equal_those_of_plain_torch(plain) -> None:
    model = _model("eight-words", dims=(20, 64, 130))
    tables = _pool(model).plan.tables
    assert [table.shared.num_hashes for table in tables if table.shared is not None] == [16, 8, 4]
    _check_gradients(model, plain)


@pytest.mark.parametrize("form", [*LINES, "words-2", "free-32", "private"])
def test_losses_one_after_the_other_add_up(form: str, plain) -> None:
    def run(model: nn.ModuleList) -> list[torch.Tensor]:
        one, two = _loss(model, 1), _loss(model, 2)  # both graphs hang on one pool before either goes back
        two.backward(retain_graph=True)
        one.backward()
        two.backward()
        _loss(model, 3).backward()  # accumulation over batches
        return _grads(model)

    model = _model(form)
    compiled = run(model)
    model.zero_grad()
    plain()
    assert _close(compiled, run(model))


@pytest.mark.parametrize("form", LINES)
def test_a_graph_goes_back_once_unless_it_is_retained(form: str) -> None:
    loss = _loss(_model(form))
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_ids_changed_before_the_backward_pass_are_noticed() -> None:
    layer = _model("eight-words")[0]
    ids = torch.arange(5)
    loss = layer(ids).sum()
    ids.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


@pytest.mark.parametrize("form", ["eight-words", "words-4", "free-16"])
def test_autograd_grad_and_hooks_see_the_pools_gradient(form: str) -> None:
    model = _model(form)
    values = _pool(model).store.values
    (direct,) = torch.autograd.grad(_loss(model), [values])
    assert values.grad is None
    seen = []
    values.register_hook(seen.append)
    _loss(model).backward()
    assert torch.equal(direct, values.grad) and torch.equal(seen[0], values.grad)


@pytest.mark.parametrize("form", ["eight-words", "words-4"])
def test_frozen_pools_and_no_grad_give_rows_without_a_graph(form: str) -> None:
    model = _model(form)
    rows = model[0](IDS)
    assert rows.requires_grad
    with torch.no_grad():
        assert not model[0](IDS).requires_grad
    with torch.inference_mode():
        assert torch.equal(model[0](IDS), rows)
    _pool(model).requires_grad_(False)
    frozen = model[0](IDS)
    assert not frozen.requires_grad and torch.equal(frozen, rows)
    _pool(model).requires_grad_(True)
    model[0](IDS).sum().backward()
    assert _pool(model).store.values.grad.any()


@pytest.mark.parametrize("form", ["eight-words", "words-4", "free-32", "private"])
def test_a_copy_lives_by_itself(form: str) -> None:
    model = _model(form)
    _loss(model).backward()
    twin = copy.deepcopy(model)
    assert torch.equal(twin[0](IDS), model[0](IDS))
    before = model[0](IDS).detach().clone()
    twin.zero_grad()
    _loss(twin).backward()
    assert _close(_grads(twin), _grads(model))
    with torch.no_grad():
        _pool(twin).store.values.neg_()
    assert torch.equal(model[0](IDS), before) and not torch.equal(twin[0](IDS), before)


@pytest.mark.parametrize("form", ["eight-words", "words-4", "free-32", "private"])
def test_values_changed_or_loaded_from_outside_are_seen(form: str) -> None:
    one, two = _model(form), _model(form, seed=2)
    one[0](IDS), two[0](IDS)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one[0](IDS), two[0](IDS))
    with torch.no_grad():
        _pool(two).store.values.neg_()
    assert two[0](IDS).detach().numpy().tobytes() == snapshot_of(two)["t0"].lookup(IDS.numpy()).tobytes()
    _pool(two).store.values.data = _pool(one).store.values.detach().clone()
    assert torch.equal(one[0](IDS), two[0](IDS))


def test_float64_models_take_torchs_own_way() -> None:
    model = _model("eight-words").double()
    assert _pool(model).compiled_path() is None
    model[0](IDS).sum().backward()
    assert _pool(model).store.values.grad.dtype == torch.float64


@pytest.mark.parametrize("form", [*LINES, "words-2", "free-1"])
def test_rows_and_gradients_have_the_same_bits_for_any_number_of_threads(form: str) -> None:
    model, before, found = _model(form), torch.get_num_threads(), []
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, N, 6_000))
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            model.zero_grad()
            rows = model[0](ids)
            rows.backward(torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)))
            found.append((rows.detach().numpy().tobytes(), _pool(model).store.values.grad.numpy().tobytes()))
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


def test_without_the_kernels_training_gives_the_same_rows() -> None:
    code = (
        "from tests.nn.test_compiled import _model, _pool, IDS; import hashlib; m = _model('eight-words');"
        "print(_pool(m).compiled_path() is None, hashlib.sha256(m[0](IDS).detach().numpy().tobytes()).hexdigest())"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"HFH_KERNELS": kernels},
        ).stdout.split()
        for kernels in ("numpy", "native")
    ]
    assert [one[0] for one in said] == ["True", "False"] and said[0][1] == said[1][1]


@pytest.mark.parametrize("form", ["line", "robe"])
def test_rows_follow_a_fused_optimizer(form: str) -> None:
    torch.manual_seed(0)
    layers = [hnn.HFHEmbedding(500, 32, ratio=8, form=form) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    ids = torch.arange(40)
    for layer, fused in zip(layers, (True, False), strict=True):
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.5, fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            (layer(ids) - 1).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(layers[0](ids), layers[1](ids), rtol=1e-4, atol=1e-4)
