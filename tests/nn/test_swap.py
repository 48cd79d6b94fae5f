"""Swapping the layers of a model, and the models that are refused."""

import numpy as np
import pytest
import torch
from torch import nn

import hfh_embed
from hfh_embed import nn as hnn
from hfh_embed.errors import RatioError, SpecError


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20_000, 16, padding_idx=0)
        self.again = self.words
        self.tags = nn.EmbeddingBag(15_000, 8, mode="sum")
        self.few = nn.Embedding(10, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.words(ids).sum() + self.again(ids).sum() + self.tags(ids[None]).sum()


class _Language(nn.Module):
    """Words in, scores of words out: the two weights are one, or two."""

    def __init__(self, tied: bool = True, bias: bool = False, words: int = 1_003, dim: int = 24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(words, dim)
        self.head = nn.Linear(dim, words, bias=bias)
        nn.init.normal_(self.embed.weight, std=0.1)
        if bias:
            nn.init.normal_(self.head.bias)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids))


IDS = torch.tensor([[0, 1, 2], [7, 1_002, 1]])


def test_the_large_tables_of_a_model_are_swapped() -> None:
    model = _Model()
    nn.init.normal_(model.words.weight, std=0.02)
    report = hnn.compress(model, ratio=20)
    assert (report.tables, report.heads, report.kept) == (("words", "tags"), (), ("few",))
    assert report.ratio >= 20
    assert model.words is model.again
    assert model.words.pool is model.tags.pool
    assert model.words.padding_idx == 0
    assert abs(float(model.words.weight.detach().std()) / 0.02 - 1) < 0.1
    model(torch.tensor([1, 2, 3])).backward()


def test_the_report_reads_well() -> None:
    model = _Language(tied=True)
    report = hnn.compress(model, ratio=10, min_rows=1_000)
    assert str(report) == (
        f"tables: embed\noutput layers: head\n{report.dense_nbytes:,} bytes became {report.nbytes:,} ({report.ratio:.1f}x)"
    )
    assert report.dense_nbytes == 4 * 1_003 * 24


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("fit", [False, True])
def test_a_tied_output_layer_stays_tied(fit: bool, bias: bool) -> None:
    model = _Language(bias=bias)
    old_bias = model.head.bias
    report = hnn.compress(model, ratio=8, fit=fit, min_rows=1_000)
    assert (report.tables, report.heads) == (("embed",), ("head",))
    assert report.ratio >= 8
    assert model.head.bias is old_bias
    rows = model.embed.weight.detach()
    expected = nn.functional.linear(rows[IDS], rows, old_bias)
    assert torch.allclose(model(IDS), expected, atol=1e-5)


@pytest.mark.parametrize("fit", [False, True])
def test_an_untied_output_layer_has_a_table_of_its_own(fit: bool, tmp_path) -> None:
    model = _Language(tied=False, bias=True)
    report = hnn.compress(model, ratio=6, fit=fit, min_rows=1_000, heads=["head"])
    assert (report.tables, report.heads, report.kept) == (("embed", "head"), ("head",), ())
    assert report.dense_nbytes == 2 * 4 * 1_003 * 24
    assert report.ratio >= 6
    scores = model(IDS)
    hnn.save(model, tmp_path / "tables.hfh")
    with hfh_embed.open(tmp_path / "tables.hfh") as snapshot:
        rows = {name: torch.from_numpy(snapshot[name].lookup(np.arange(1_003))) for name in ("embed", "head")}
    expected = nn.functional.linear(rows["embed"][IDS], rows["head"], model.head.bias)
    assert torch.allclose(scores, expected, atol=1e-4)


def test_an_output_layer_that_nobody_named_is_told_as_dense() -> None:
    model = _Language(tied=False)
    report = hnn.compress(model, ratio=10, min_rows=1_000)
    assert (report.heads, report.kept) == ((), ("head",))


def test_fitted_tables_keep_their_rows_and_are_frozen() -> None:
    model = _Language()
    before = model.embed.weight.detach().clone()
    hnn.compress(model, ratio=4, fit=True, min_rows=1_000)
    error = (model.embed.weight - before).square().sum() / before.square().sum()
    assert error < 0.1
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_fitted_padding_row_is_a_row_like_any_other() -> None:
    model = nn.Sequential(nn.Embedding(1_003, 24, padding_idx=3))
    with torch.no_grad():
        model[0].weight[3] = 1.0
    hnn.compress(model, ratio=4, fit=True, min_rows=1_000)
    assert (model(torch.tensor([3])) - 1).abs().mean() < 0.2


def test_new_rows_train_through_both_ends() -> None:
    model = _Language(bias=True)
    hnn.compress(model, ratio=10, min_rows=1_000)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(IDS).flatten(0, 1), IDS.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_embeddings_of_one_weight_become_one_layer() -> None:
    model = nn.ModuleDict({"encoder": nn.Embedding(1_003, 8), "decoder": nn.Embedding(1_003, 8)})
    model["decoder"].weight = model["encoder"].weight
    report = hnn.compress(model, ratio=10, min_rows=1_000)
    assert report.tables == ("encoder",)
    assert model["encoder"] is model["decoder"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("fit", [False, True])
def test_other_dtypes_work(dtype: torch.dtype, fit: bool) -> None:
    model = nn.Sequential(nn.Embedding(1_003, 24), nn.LayerNorm(24), nn.Linear(24, 3)).to(dtype)
    hnn.compress(model, ratio=6, fit=fit, min_rows=1_000)
    out = model(IDS)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    assert model.float()(IDS).dtype == torch.float32
    tied = _Language().to(dtype)
    hnn.compress(tied, ratio=6, fit=fit, min_rows=1_000)
    assert tied(IDS).dtype == dtype


def test_modules_keep_their_mode() -> None:
    model = _Language().eval()
    hnn.compress(model, ratio=10, min_rows=1_000)
    assert not model.embed.training
    assert not model.head.training


class _Scaled(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 8


def _sharing() -> nn.Module:
    model = nn.ModuleDict({"words": nn.Embedding(20_000, 16), "filter": nn.Conv1d(16, 20_000, 1)})
    model["filter"].weight = model["words"].weight
    return model


def _differing() -> nn.Module:
    model = nn.ModuleDict({"a": nn.Embedding(20_000, 16), "b": nn.Embedding(20_000, 16, padding_idx=0)})
    model["b"].weight = model["a"].weight
    return model


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Embedding(20_000, 16))
    model[0].register_forward_hook(lambda module, args, output: output)
    return model


def _named_twice() -> nn.Module:
    return nn.ModuleDict({"words": nn.Embedding(20_000, 16), "old": hnn.HFHEmbedding(50, 4, ratio=2, name="words")})


def _on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Embedding(20_000, 16))


REFUSED = {
    "no embedding": (lambda: nn.Linear(2, 2), "no embedding of at least 10,000 rows"),
    "none large enough": (lambda: nn.Sequential(nn.Embedding(10, 4)), "lower min_rows"),
    "compressed already": (lambda: nn.Sequential(hnn.HFHEmbedding(20_000, 16, ratio=9)), "beside the HFH layers"),
    "itself an embedding": (lambda: nn.Embedding(20_000, 16), "HFHEmbedding.from_pretrained"),
    "a weight shared with another kind": (_sharing, "shared with 'filter' .Conv1d."),
    "options that differ": (_differing, "'a' and 'b' share a weight but not their options"),
    "sparse": (lambda: nn.Sequential(nn.Embedding(20_000, 16, sparse=True)), "'0' has sparse=True"),
    "max_norm": (lambda: nn.Sequential(nn.EmbeddingBag(20_000, 16, max_norm=2.0)), "'0' has max_norm=2.0"),
    "another forward": (lambda: nn.Sequential(_Scaled(20_000, 16)), "'0' is a _Scaled"),
    "hooks": (_hooked, "hooks, which would be lost"),
    "a name that is taken": (_named_twice, "'old' holds a table named 'words' already"),
    "meta": (_on_meta, "meta device"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("fit", [False, True])
def test_what_cannot_be_swapped_is_refused_before_anything_changes(case: str, fit: bool) -> None:
    make, message = REFUSED[case]
    model = make()
    before = {name: id(module) for name, module in model.named_modules()}
    with pytest.raises(SpecError, match=message):
        hnn.compress(model, ratio=20, fit=fit)
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(SpecError, match=r"heads names 'nowhere', which is not in the model"):
        hnn.compress(_Language(), ratio=9, min_rows=1_000, heads=["nowhere"])
    with pytest.raises(SpecError, match=r"heads names 'embed', which is a Embedding"):
        hnn.compress(_Language(), ratio=9, min_rows=1_000, heads=["embed"])
    with pytest.raises(SpecError, match="frequencies are given for 'words'; tables are embed"):
        hnn.compress(_Language(), ratio=9, min_rows=1_000, frequencies={"words": np.ones(1_003)})
    with pytest.raises(SpecError, match="leave it out with fit=True"):
        hnn.compress(_Language(), ratio=9, min_rows=1_000, form="line", fit=True)
    with pytest.raises(RatioError):
        hnn.compress(_Language(), ratio=1e9, min_rows=1_000, fit=True)
