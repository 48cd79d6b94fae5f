"""Pools whose values are held as bfloat16 in training: half the memory, and steps that are right on average."""

from collections.abc import Iterable

import pytest
import torch
from torch import nn

from hfh_embed import nn as hnn
from hfh_embed.errors import SpecError
from hfh_embed.kernels import backends
from hfh_embed.nn.io import snapshot_of
from hfh_embed.nn.rounding import noisily_rounded
from tests.nn.test_compiled import FORMS, IDS, LINES, N, through_a_file

pytestmark = pytest.mark.skipif("native" not in backends(), reason="the compiled kernels are not installed")

MAKES = {"sgd": lambda pools: hnn.PoolSGD(pools, lr=0.05), "adam": lambda pools: hnn.PoolAdam(pools, lr=0.02)}
OTHERS = ["words-2", "words-16", "free-1", "line-8"]


def _model(form: str, seed: int = 1, master: str = "bfloat16", ratio: float = 6) -> nn.ModuleList:
    torch.manual_seed(seed)
    tables = {f"t{k}": (N + k, dim) for k, dim in enumerate((40, 130, 64))}
    pool = hnn.Pool.for_tables(tables, ratio, form=FORMS[form], master=master)
    return nn.ModuleList(hnn.HFHEmbedding(rows, dim, pool=pool, name=name) for name, (rows, dim) in tables.items())


def _values(model: nn.ModuleList) -> nn.Parameter:
    return model[0].table.pool.store.values


def _train(model: nn.ModuleList, optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> list[float]:
    losses = []
    for seed in steps:
        ids = torch.randint(0, N, (60,), generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        loss = sum((layer(ids) - 0.5).square().sum(dim=1).mean() for layer in model)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_bfloat16_masters_take_half_the_memory_and_begin_as_float32_ones() -> None:
    narrow, wide = _values(_model("eight-words")), _values(_model("eight-words", master="float32"))
    assert narrow.dtype == torch.bfloat16 and narrow.nbytes * 2 == wide.nbytes
    assert torch.equal(narrow, wide.bfloat16())
    assert hnn.HFHEmbedding(100, 64, ratio=10, master="bfloat16").pool.store.values.dtype == torch.bfloat16


def test_other_masters_are_refused() -> None:
    with pytest.raises(SpecError, match="float32 and bfloat16"):
        hnn.HFHEmbedding(100, 64, ratio=10, master="float16")
    with pytest.raises(SpecError, match="master"):
        hnn.HFHEmbedding(100, 64, pool=hnn.Pool.for_tables({"table": (100, 64)}, 10), master="bfloat16")


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("form", [*LINES, *OTHERS])
def test_training_lowers_the_loss_and_rows_equal_the_snapshot(form: str, make: str) -> None:
    model = _model(form)
    losses = _train(model, MAKES[make](model), [0] * 12)
    assert _values(model).dtype == torch.bfloat16 and losses[-1] < losses[0]
    for k, layer in enumerate(model):
        stored = snapshot_of(model)[f"t{k}"].lookup(IDS.numpy())
        assert layer(IDS).detach().numpy().tobytes() == stored.tobytes()


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("form", LINES)
def test_the_same_bits_for_any_number_of_threads_and_after_a_checkpoint(form: str, make: str) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads, resumed in ((1, False), (3, False), (2, True)):
            torch.set_num_threads(threads)
            model = _model(form)
            optimizer = MAKES[make](model)
            _train(model, optimizer, range(3))
            if resumed:
                saved = through_a_file(model, optimizer)
                model = _model(form, seed=9)
                optimizer = MAKES[make](model)
                model.load_state_dict(saved["model"])
                optimizer.load_state_dict(saved["optimizer"])
            _train(model, optimizer, range(3, 6))
            found.append(_values(model).view(torch.int16).numpy().tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


@pytest.mark.parametrize("form", ["eight-words", "words-2"])  # by lines, and by torch on the whole gradient
def test_steps_smaller_than_a_roundings_half_are_right_on_average(form: str) -> None:
    narrow, wide = (_model(form, master=master) for master in ("bfloat16", "float32"))
    for model in (narrow, wide):
        optimizer = hnn.PoolSGD(model, lr=1e-4)
        with torch.no_grad():
            _values(model).fill_(1.0)  # above 1, neighbours are 2**-7 apart, a hundred times these steps
        for seed in range(40):
            generator = torch.Generator().manual_seed(seed)
            optimizer.zero_grad()
            ids, upstream = torch.randint(0, N, (200,), generator=generator), torch.randn(200, 64, generator=generator)
            model[2](ids).backward(upstream)
            optimizer.step()
    found, wanted = (_values(model).detach().double() - 1 for model in (narrow, wide))
    slope = float((found * wanted).sum() / wanted.square().sum())
    assert 0.9 < slope < 1.1, slope


def test_noise_rounds_to_the_two_neighbours_in_proportion() -> None:
    between = torch.full((100_000,), 1 + 0.3 * 2.0**-7)
    rounded = noisily_rounded(between, seed=3).float()
    assert set(rounded.tolist()) == {1.0, 1 + 2.0**-7}
    assert abs(float((rounded > 1).float().mean()) - 0.3) < 0.01
    assert torch.equal(noisily_rounded(-between, seed=3).float(), -rounded)
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, float("inf")])
    assert torch.equal(noisily_rounded(exact, seed=4).float(), exact)
