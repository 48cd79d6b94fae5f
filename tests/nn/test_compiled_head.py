"""The compiled loss of a vocabulary against the one of torch, in float64, for every kind of row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hfh_embed import nn as hnn
from hfh_embed.budget import Form
from hfh_embed.kernels import native_chosen
from hfh_embed.nn import compiled_head, tiles
from hfh_embed.spec import Locality

if not native_chosen():
    pytest.skip("the package was installed without its compiled kernels", allow_module_level=True)

from hfh_embed.kernels import _native

if not _native.TILES:
    pytest.skip("this processor has no AMX, or HFH_SIMD keeps to vectors", allow_module_level=True)

FORMS: dict[str, tuple[Form, bool]] = {
    "line": (Form(), True),
    "four words": (Form(num_hashes=4), True),
    "8-bit pool": (Form(bits=8, num_hashes=2, locality=Locality.FREE, chunk_size=4), False),
    "float pool": (Form(bits=32, num_hashes=2, locality=Locality.FREE, chunk_size=4), False),
    "private and shared": (Form(private_dim=8, private_bits=2), False),
    "map": (Form(latent_dim=8), False),
    "residual": (Form(residual_hidden=4), False),
}


def _results(head: hnn.VocabularyHead, hidden: Tensor, targets: Tensor, **options: Any) -> dict[str, Tensor]:
    hidden = hidden.detach().requires_grad_()
    losses = head.loss(hidden, targets, reduction="none", **options)
    weights = torch.linspace(0.1, 1, losses.numel(), dtype=losses.dtype).view(losses.shape)
    (losses * weights).sum().backward()
    found = {"losses": losses.detach(), "hidden": hidden.grad}
    found |= {name: parameter.grad for name, parameter in head.named_parameters()}
    head.zero_grad()
    return {name: value.clone() for name, value in found.items() if value is not None}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.01}])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_as_exact_as_torch(name: str, options: Any, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    form, whole = FORMS[name]
    head = hnn.VocabularyHead(1500, 40, ratio=3, form=form, bias=bias, padding_idx=7)
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    assert (compiled_head._scale(head.table) is not None) == whole
    hidden, targets = 3 * torch.randn(3, 11, 40), torch.randint(0, 1500, (3, 11))
    targets[0, :2] = torch.tensor([0, 1499])
    monkeypatch.setattr(compiled_head, "TILE_FLOATS", 640 * 40)
    asked: list[bool] = []
    serves = compiled_head.serves_losses
    monkeypatch.setattr(tiles, "serves_losses", lambda *given: asked.append(serves(*given)) or asked[-1])
    ours = _results(head, hidden, targets, **options)
    assert asked == [True]
    monkeypatch.setattr(tiles, "serves_losses", lambda *_: False)
    plain = _results(head, hidden, targets, **options)
    exact = _results(head.double(), hidden.double(), targets, **options)
    assert ours.keys() == plain.keys() == exact.keys()
    for part, true in exact.items():
        error, allowed = ((value[part] - true).abs().max() for value in (ours, plain))
        assert error <= 2 * allowed + 2e-6 * true.abs().max(), (part, float(error), float(allowed))


def test_a_second_backward_pass_gives_the_same() -> None:
    head = hnn.VocabularyHead(700, 24, ratio=20, form="line")
    hidden = torch.randn(20, 24, requires_grad=True)
    loss = head.loss(hidden, torch.arange(20))
    first, second = (torch.autograd.grad(loss, [hidden, head.pool.store.values], retain_graph=True) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_what_is_not_trained_gets_no_gradient() -> None:
    head = hnn.VocabularyHead(700, 24, ratio=20, form="line", bias=True)
    head.pool.requires_grad_(False)
    hidden = torch.randn(20, 24, requires_grad=True)
    head.loss(hidden, torch.arange(20)).backward()
    assert head.pool.store.values.grad is None
    assert head.bias is not None
    assert head.bias.grad is not None
    assert hidden.grad is not None
    head.pool.requires_grad_(True)
    head.loss(hidden.detach(), torch.arange(20)).backward()
    assert head.pool.store.values.grad is not None


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("tokens", [1, 8])
def test_logits_of_few_tokens_are_those_of_many(name: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(compiled_head, "FEW_LOGITS", 3000)
    head = hnn.VocabularyHead(3001, 40, ratio=3, form=FORMS[name][0], bias=True, padding_idx=7)
    assert head.bias is not None
    torch.nn.init.normal_(head.bias)
    hidden = torch.randn(tokens, 40)

    def found() -> Tensor:
        few = compiled_head.few_logits(head._tiled(hidden), hidden)
        assert few is not None
        return torch.cat([logits for _, logits in few], dim=1)

    torch.testing.assert_close(found(), head(hidden).detach(), rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # what was kept of the rows must not outlive a step
        for parameter in head.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    torch.testing.assert_close(found(), head(hidden).detach(), rtol=1e-4, atol=1e-4)
