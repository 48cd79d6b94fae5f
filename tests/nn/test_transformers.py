"""Models of Hugging Face transformers: swapped, used, saved, and loaded in another process."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hfh_embed import nn as hnn
from hfh_embed.nn.swap import Report

transformers = pytest.importorskip("transformers")

WORDS, DIM = 1_203, 32
IDS = torch.tensor([[5, 1, 77, 1_202, 3], [9, 9, 8, 0, 64]])


def _gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=WORDS, n_embd=DIM, n_layer=1, n_head=2, n_positions=40, bos_token_id=1, eos_token_id=2
        )
    )


def _llama(tied: bool) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=WORDS,
            hidden_size=DIM,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
            pad_token_id=0,
        )
    )


def _opt() -> nn.Module:
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=WORDS,
            hidden_size=DIM,
            word_embed_proj_dim=DIM,
            ffn_dim=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=40,
        )
    )


def _bert_config() -> object:
    return transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=DIM,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
    )


def _bert() -> nn.Module:
    model = transformers.BertForMaskedLM(_bert_config())
    nn.init.normal_(model.cls.predictions.bias)
    return model


def _t5() -> nn.Module:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=WORDS, d_model=DIM, d_kv=16, d_ff=48, num_layers=1, num_heads=2, decoder_start_token_id=0
        )
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], tuple[str, ...]]] = {
    "gpt2": (_gpt2, ("transformer.wte",), ("lm_head",)),
    "llama": (lambda: _llama(True), ("model.embed_tokens",), ("lm_head",)),
    "llama-untied": (lambda: _llama(False), ("model.embed_tokens", "lm_head"), ("lm_head",)),
    "opt": (_opt, ("model.decoder.embed_tokens",), ("lm_head",)),
    "bert": (_bert, ("bert.embeddings.word_embeddings",), ("cls.predictions.decoder",)),
    "bert-encoder": (lambda: transformers.BertModel(_bert_config()), ("embeddings.word_embeddings",), ()),
    "t5": (_t5, ("shared",), ("lm_head",)),
}
GENERATING = [name for name in MODELS if "bert" not in name]
LOAD = """
import json, sys
import torch
import transformers
import hfh_embed.nn.transformers
out = {}
for name, kind, folder in json.loads(sys.argv[1]):
    model = getattr(transformers, kind).from_pretrained(folder)
    ids = torch.tensor(json.loads(sys.argv[2]))
    more = {"decoder_input_ids": ids} if name.startswith("t5") else {}
    with torch.no_grad():
        out[name] = model(ids, **more)[0].double().sum((0, 1))[:20].tolist()
print("RESULT" + json.dumps(out))
"""


def _made(name: str, fit: bool = False) -> tuple[nn.Module, Report]:
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    return model, hnn.compress(model, ratio=6, fit=fit, min_rows=1_000)


def _outputs(name: str, model: nn.Module) -> torch.Tensor:
    more = {"decoder_input_ids": IDS} if name.startswith("t5") else {}
    with torch.no_grad():
        return model(IDS, **more)[0]


@pytest.mark.parametrize("name", MODELS)
def test_both_ends_are_swapped_and_stay_tied(name: str) -> None:
    model, report = _made(name)
    assert (report.tables, report.heads) == MODELS[name][1:]
    assert report.ratio >= 6
    before = _outputs(name, model)
    model.tie_weights()
    assert torch.equal(_outputs(name, model), before)
    assert isinstance(model.get_input_embeddings(), hnn.HFHEmbedding)
    if report.heads:
        assert isinstance(model.get_output_embeddings(), hnn.VocabularyHead)


@pytest.mark.parametrize("name", GENERATING)
def test_models_generate(name: str) -> None:
    model, _ = _made(name)
    ids = model.generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(IDS))
    assert ids.shape[1] >= 4
    assert int(ids.max()) < WORDS


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_new_tables_train(name: str) -> None:
    model, _ = _made(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("name", MODELS)
def test_fitted_tables_give_what_the_dense_model_gives_with_their_rows(name: str) -> None:
    torch.manual_seed(0)
    dense = MODELS[name][0]().eval()
    model, report = _made(name, fit=True)
    with torch.no_grad():
        for path in report.tables:
            layer = model.get_submodule(path)
            rows = layer.weight
            dense.get_submodule(path).weight.copy_(rows)
    assert torch.allclose(_outputs(name, model), _outputs(name, dense), atol=1e-4)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor, list[float]]]:
    """Each model saved fitted and while it is trained: its folder, what it gives, and what it gives in another process."""
    folder = tmp_path_factory.mktemp("models")
    saved = {}
    for name in MODELS:
        for state in ("fitted", "trained"):
            model, _ = _made(name, fit=state == "fitted")
            if state == "trained":
                loss = _loss(name, model)
                loss.backward()
                torch.optim.SGD(model.parameters(), lr=0.1).step()
            path = folder / f"{name} {state}"
            model.save_pretrained(path)
            saved[f"{name} {state}"] = (path, type(model).__name__, _outputs(name, model).double().sum((0, 1))[:20])
    jobs = json.dumps([(name, kind, str(path)) for name, (path, kind, _) in saved.items()])
    command = [sys.executable, "-c", LOAD, jobs, json.dumps(IDS.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.rpartition("RESULT")[2])
    return {name: (path, expected, found[name]) for name, (path, _, expected) in saved.items()}


def _loss(name: str, model: nn.Module) -> torch.Tensor:
    if name == "bert-encoder":
        return model(IDS)[0].square().mean()
    return model(IDS, labels=IDS).loss


@pytest.mark.parametrize("state", ["fitted", "trained"])
@pytest.mark.parametrize("name", MODELS)
def test_another_process_loads_the_same_model(loaded: dict, name: str, state: str) -> None:
    _, expected, found = loaded[f"{name} {state}"]
    assert torch.tensor(found) == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama-untied"])
def test_frozen_tables_are_saved_in_their_few_bytes(loaded: dict, name: str, tmp_path) -> None:
    MODELS[name][0]().save_pretrained(tmp_path)
    dense = (tmp_path / "model.safetensors").stat().st_size
    small = (loaded[f"{name} fitted"][0] / "model.safetensors").stat().st_size
    tables = 4 * WORDS * DIM * (2 if "untied" in name else 1)
    assert small < dense - tables + tables / 6 + 6_000  # and the header


def test_training_goes_on_where_it_was(loaded: dict) -> None:
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel.from_pretrained(loaded["gpt2 trained"][0])
    values = model.get_input_embeddings().pool.store.values
    assert values.requires_grad
    assert model.lm_head.table.pool.store.values is values
    before = values.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _loss("gpt2", model).backward()
    optimizer.step()
    assert not torch.equal(values, before)
    assert len(before.unique()) > 1_000  # masters, not rounded values
