"""Tables with levels, from training to the service."""

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

import hfh_embed
from hfh_embed import nn as hnn
from hfh_embed.budget import Form
from hfh_embed.kernels import backends
from hfh_embed.nn.io import layers_of, snapshot_of
from hfh_embed.spec import LevelIndex
from service.app import create_app
from service.settings import Settings
from service.state import State

N, D = 5_000, 32


def _frequencies(kind: str) -> np.ndarray:
    words = 1e6 / (1.0 + np.arange(N))
    return words if kind == "words" else np.random.default_rng(0).permutation(words)


@pytest.mark.parametrize(("kind", "index"), [("words", LevelIndex.FIRST), ("clicks", LevelIndex.CODES)])
def test_what_was_trained_is_served(kind: str, index: LevelIndex, tmp_path) -> None:
    torch.manual_seed(0)
    layer = hnn.HFHEmbedding(N, D, ratio=32, frequencies=_frequencies(kind), name="words")
    assert layer.spec.levels is not None and layer.spec.levels.index is index
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randint(0, N, (300,))).square().sum().backward()
        optimizer.step()
    hnn.save(layer, tmp_path / "words.hfh")
    hfh_embed.verify(tmp_path / "words.hfh")
    trained = layer.weight.detach().numpy()
    for kernels in backends():
        found = hfh_embed.open(tmp_path / "words.hfh", kernels=kernels)["words"].lookup(np.arange(N))
        assert np.abs(found - trained).max() <= 4e-6 * np.abs(trained).max()
    ids = np.array([0, N - 1, 17, 1_234])
    with TestClient(create_app(State.load(Settings(paths=(tmp_path / "words.hfh",))))) as client:
        headers = {"content-type": "application/octet-stream", "accept": "application/octet-stream"}
        answer = client.post("/v1/tables/words/lookup", content=ids.astype("<i8").tobytes(), headers=headers)
        assert np.abs(np.frombuffer(answer.content, "<f4").reshape(4, D) - trained[ids]).max() < 1e-5


def test_frequent_ids_have_wider_rows_whatever_their_order() -> None:
    frequencies = _frequencies("clicks")
    layer = hnn.HFHEmbedding(N, D, ratio=32, frequencies=frequencies)
    levels = layer.table.levels
    assert levels is not None
    level, _ = levels.find(torch.from_numpy(np.argsort(-frequencies)))
    assert (level.diff() >= 0).all()
    widths = [part.dim for part in levels.levels.each]
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1]


def test_every_level_gets_a_gradient_of_any_batch() -> None:
    layer = hnn.HFHEmbedding(N, D, ratio=32, form=Form(level_share=0.5), frequencies=_frequencies("words"))
    assert layer.table.levels is not None
    for ids in ([0], [N - 1], [0, N - 1]):
        layer.zero_grad()
        layer(torch.tensor(ids)).sum().backward()
        assert all(parameter.grad is not None for parameter in layer.table.levels.parameters())


def test_an_empty_batch_has_a_shape() -> None:
    layer = hnn.HFHEmbedding(N, D, ratio=32, frequencies=_frequencies("clicks"))
    assert layer(torch.zeros(0, dtype=torch.long)).shape == (0, D)
    assert layer(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, D)


def test_a_state_brings_its_ids_along() -> None:
    one, two = (hnn.HFHEmbedding(N, D, ratio=32, frequencies=_frequencies(kind)) for kind in ("clicks", "clicks"))
    assert one.table.levels is not None and one.table.levels.places is not None
    one.table.levels.places.copy_(one.table.levels.places.flip(0))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.weight, two.weight)


def test_a_table_that_is_drawn_anew_takes_its_ids_from_a_state() -> None:
    layer = hnn.HFHEmbedding(N, D, ratio=32, frequencies=_frequencies("clicks"), name="words")
    anew = layers_of(snapshot_of(layer), fresh=True)["words"]
    anew.load_state_dict(layer.state_dict())
    assert torch.equal(anew.weight, layer.weight)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_are_those_of_the_rows(mode: str) -> None:
    layer = hnn.HFHEmbeddingBag(N, D, ratio=32, mode=mode, frequencies=_frequencies("clicks"), padding_idx=3)
    ids, offsets = torch.tensor([5, 3, 9, 4_000, 5, 3]), torch.tensor([0, 2, 2, 5])
    plain = torch.nn.functional.embedding_bag(ids, layer.weight, offsets, mode=mode, padding_idx=3)
    assert torch.allclose(layer(ids, offsets), plain, atol=1e-6)


def test_a_model_is_compressed_by_its_frequencies() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(N, D))
    report = hnn.compress(model, ratio=32, min_rows=100, frequencies={"0": _frequencies("words")})
    assert report.ratio >= 32
    assert model[0].spec.levels is not None and model[0].spec.levels.count == N
