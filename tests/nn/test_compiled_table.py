"""Rows and logits of tables with codes: those of the kernels are those of torch, whatever the values are now."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hfh_embed import nn as hnn
from hfh_embed.kernels import native_chosen
from hfh_embed.nn import compiled_head
from hfh_embed.nn.compiled_table import coded_kernel, coded_rows

pytest.importorskip("faiss")
if not native_chosen():
    pytest.skip("the package was installed without its compiled kernels", allow_module_level=True)

IDS = torch.tensor([5, 0, 1_999, 5, 700])
CASES: dict[str, dict[str, Any]] = {
    "8x": {"ratio": 8},
    "20x": {"ratio": 20},
    "padding": {"ratio": 12, "padding_idx": 5},
    "exact rows": {"ratio": 16, "frequencies": (1e6 / (1 + np.arange(2_000.0)) ** 2)[::-1].copy()},
}


def _layer(name: str, freeze: bool = True) -> hnn.HFHEmbedding:
    return copy.deepcopy(_fitted(name)).requires_grad_(not freeze)


@functools.cache
def _fitted(name: str) -> hnn.HFHEmbedding:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2_000, 48, generator=generator) * torch.linspace(2, 0.05, 48)
    layer = hnn.HFHEmbedding.from_pretrained(weight, **CASES[name])
    assert layer.spec.coded is not None or layer.spec.trellis is not None
    return layer


def _by_torch(layer: hnn.HFHEmbedding, ids: Tensor) -> Tensor:
    """Rows that need a gradient, which the kernels do not give."""
    frozen = [parameter for parameter in layer.parameters() if not parameter.requires_grad]
    layer.requires_grad_(True)
    rows = layer.table.rows(ids)
    assert rows.requires_grad
    for parameter in frozen:
        parameter.requires_grad_(False)
    return rows.detach()


@pytest.mark.parametrize("name", CASES)
def test_rows_without_gradients_are_those_of_torch(name: str) -> None:
    layer = _layer(name)
    ids = torch.arange(2_000)
    found = coded_rows(layer.table, ids)
    assert found is not None
    torch.testing.assert_close(found, _by_torch(layer, ids), rtol=1e-4, atol=1e-5)
    assert torch.equal(layer(IDS), found[IDS])


def test_rows_follow_what_training_makes_of_the_values() -> None:
    layer = _layer("8x", freeze=False)
    before = coded_rows(layer.table, IDS)
    assert before is None, "a gradient is wanted"
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01, fused=True)
    for _ in range(2):
        with torch.no_grad():
            kept = layer(IDS).clone()
        optimizer.zero_grad()
        layer(IDS).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            now = layer(IDS)
        assert not torch.allclose(now, kept)
        torch.testing.assert_close(now, _by_torch(layer, IDS), rtol=1e-4, atol=1e-5)


def test_other_dtypes_stay_with_torch() -> None:
    layer = _layer("8x").double()
    assert coded_kernel(layer.table) is None
    assert layer(IDS).dtype == torch.float64


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tokens", [1, 8, 9])
def test_logits_of_codes_are_products_of_their_rows(name: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_head, "FEW_LOGITS", 1_500)
    layer = _layer(name)
    head = hnn.VocabularyHead(2_000, 48, tie=layer, bias=torch.linspace(-1, 1, 2_000))
    hidden = torch.randn(tokens, 48, generator=torch.Generator().manual_seed(1))
    few = compiled_head.few_logits(head._tiled(hidden), hidden)
    assert (few is None) == (tokens > compiled_head.MOST_FEW)
    assert head.bias is not None
    expected = hidden @ layer.weight.T + head.bias.detach()
    if few is not None:
        torch.testing.assert_close(torch.cat([part for _, part in few], dim=1), expected, rtol=1e-4, atol=1e-4)
    values, ids = head.topk(hidden, 5)
    torch.testing.assert_close(values, expected.topk(5).values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(expected.gather(1, ids), values, rtol=1e-4, atol=1e-4)


def test_frozen_codes_let_gradients_through_to_the_hidden_states() -> None:
    layer = _layer("20x")
    head = hnn.VocabularyHead(2_000, 48, tie=layer)
    hidden, targets = torch.randn(20, 48, requires_grad=True), torch.arange(20)
    head.loss(hidden, targets).backward()
    other = hidden.detach().clone().requires_grad_()
    torch.nn.functional.cross_entropy(other @ layer.weight.T, targets).backward()
    torch.testing.assert_close(hidden.grad, other.grad, rtol=1e-4, atol=1e-5)
