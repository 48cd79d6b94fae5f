"""Models of Hugging Face transformers with HFH layers: ``save_pretrained`` and ``from_pretrained``.

    import hfh_embed.nn.transformers  # lets from_pretrained know HFH
    model = AutoModelForCausalLM.from_pretrained("folder")

``hnn.compress`` makes a transformers model known here. It is then saved like a quantized one: the tables are one tensor
``hfh_tables`` in its weights, the bytes of a snapshot. While they are trained (any of their parameters requires a gradient) the
float32 masters are saved too, under their names in the ``state_dict``, so that training can go on where it was.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hfh_embed
from hfh_embed.errors import MissingDependencyError, SnapshotError, SpecError
from hfh_embed.nn.embedding import HFHEmbedding, HFHEmbeddingBag, Lookup
from hfh_embed.nn.io import layers_of, snapshot_of
from hfh_embed.nn.vocabulary import VocabularyHead
from hfh_embed.snapshot import Snapshot

try:
    from transformers import PreTrainedModel
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError:
    raise MissingDependencyError(
        "hfh_embed.nn.transformers needs transformers 5; install it with: pip install 'hfh-embed[transformers]'"
    ) from None

__all__ = ["HFHConfig", "HFHQuantizer", "adopt"]

TABLES = "hfh_tables"


@register_quantization_config("hfh")
class HFHConfig(QuantizationConfigMixin):
    """The entry ``quantization_config`` of a model's configuration: which layers are HFH's, and how many bytes their tables are.

    Args:
        layers: by path, the layer's kind, its table and its options.
        nbytes: of the snapshot.
        trained: the masters that were saved, by name, each with its dtype and shape.
    """

    def __init__(
        self,
        layers: dict[str, dict[str, Any]] | None = None,
        nbytes: int = 0,
        trained: dict[str, list[Any]] | None = None,
        **_: Any,
    ) -> None:
        self.quant_method = "hfh"  # type: ignore[assignment]
        self.layers, self.nbytes, self.trained = layers or {}, nbytes, trained or {}


@register_quantizer("hfh")
class HFHQuantizer(HfQuantizer):
    """What transformers calls to save a model with HFH layers, and to load one."""

    quantization_config: HFHConfig
    requires_calibration = False
    is_trainable = True
    is_qat_trainable = True

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Whether such a model can be saved."""
        return True

    def get_state_dict_and_metadata(self, model: PreTrainedModel, *_: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The model's tensors with the tables as one; the configuration is brought up to date."""
        layers = _layers(model)
        snapshot = snapshot_of(model)
        state = {key: value for key, value in model.state_dict().items() if not _inside(key, layers)}
        for path, layer in layers.items():
            if isinstance(layer, VocabularyHead) and layer.bias is not None:
                state[f"{path}.bias"] = layer.bias.detach()
        masters = _masters(model, layers)
        blob = _bytes(snapshot)
        self.quantization_config.layers = {path: _described(path, layer) for path, layer in layers.items()}
        self.quantization_config.nbytes = len(blob)
        self.quantization_config.trained = {
            key: [str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in masters.items()
        }
        return state | masters | {TABLES: blob}, {}

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        """Put empty modules where the layers will be, that hold what is in the file."""
        config = self.quantization_config
        for path, facts in config.layers.items():
            holder = nn.Module()
            holder.weight = torch.empty(facts["rows"], 0)  # looked at for its rows, initialized by some models
            if facts.get("bias"):
                holder.bias = nn.Parameter(torch.empty(facts["rows"], device="meta"))
            _place(model, path, holder)
        for key, (dtype, shape) in config.trained.items():
            below, name = key.rsplit(".", 1)
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            _made(model, below).register_buffer(name, tensor)
        model.register_buffer(TABLES, torch.empty(config.nbytes, dtype=torch.uint8, device="meta"))
        untie(model, set(config.layers))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        """Build the layers from what was loaded."""
        config = self.quantization_config
        blob = model.get_buffer(TABLES)
        if blob.is_meta or not len(blob):
            raise SnapshotError(
                f"the weights have no tensor {TABLES!r} with the tables; save the model again with save_pretrained"
            )
        del model._buffers[TABLES]
        masters = {key: model.get_buffer(key) for key in config.trained}
        tables = layers_of(_snapshot(blob), fresh=bool(masters))
        for table in tables.values():
            table.requires_grad_(False).to(blob.device)
            if model.dtype == torch.float64:
                table.double()
            table.row_dtype = None if model.dtype == torch.float32 else model.dtype
        for path, facts in config.layers.items():
            _place(model, path, _rebuilt(facts, tables, getattr(model.get_submodule(path), "bias", None)))
        for key, value in masters.items():
            parameter = model.get_parameter_or_buffer(key)
            with torch.no_grad():
                parameter.copy_(value)
            if isinstance(parameter, nn.Parameter):
                parameter.requires_grad_()
        setattr(model, "is_quantized", False)  # noqa: B010 (an attribute that transformers sets the same way)


def adopt(model: nn.Module) -> None:
    """Let the transformers models in ``model`` save their HFH layers and leave them untied."""
    inside: set[int] = set()
    for module in model.modules():
        if not isinstance(module, PreTrainedModel) or id(module) in inside or not (layers := _layers(module)):
            continue
        inside |= {id(below) for below in module.modules()}
        config = HFHConfig()
        module.config.quantization_config = config
        setattr(module, "hf_quantizer", HFHQuantizer(config))  # noqa: B010
        untie(module, set(layers))


def untie(model: PreTrainedModel, paths: set[str]) -> None:
    """Forget what ties the weights of these layers, which have none any more."""

    def kept(keys: dict[str, str], prefix: str) -> dict[str, str]:
        gone = {f"{path}.weight" for path in paths}
        return {k: v for k, v in keys.items() if not {prefix + k, prefix + v} & gone}

    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            prefix = f"{path}." if path else ""
            module._tied_weights_keys = kept(module._tied_weights_keys or {}, prefix)
            module.all_tied_weights_keys = kept(module.all_tied_weights_keys, prefix)


def _layers(model: nn.Module) -> dict[str, Lookup | VocabularyHead]:
    """HFH layers by path, at each place where they stand."""
    named = model.named_modules(remove_duplicate=False)
    found = {path: module for path, module in named if isinstance(module, Lookup | VocabularyHead)}
    return {path: module for path, module in found.items() if path.rpartition(".")[0] not in found}


def _described(path: str, layer: Lookup | VocabularyHead) -> dict[str, Any]:
    """What is needed to put a layer over its table again."""
    common = {"table": layer.spec.name, "rows": layer.num_embeddings}
    if isinstance(layer, VocabularyHead):
        return {"kind": "head", **common, "bias": layer.bias is not None}
    if isinstance(layer, HFHEmbeddingBag):
        return {"kind": "bag", **common, "mode": layer.mode, "include_last_offset": layer.include_last_offset}
    if not isinstance(layer, HFHEmbedding):
        raise SpecError(f"{path!r} is a {type(layer).__name__}, which save_pretrained cannot save; use hnn.save")
    return {"kind": "embedding", **common}


def _rebuilt(facts: dict[str, Any], tables: dict[str, HFHEmbedding], bias: nn.Parameter | None) -> nn.Module:
    """The layer that was described."""
    embedding = tables[facts["table"]]
    if facts["kind"] == "bag":
        options = {"mode": facts["mode"], "include_last_offset": facts["include_last_offset"]}
        return HFHEmbeddingBag._of(embedding.table, row_dtype=embedding.row_dtype, **options)
    if facts["kind"] == "embedding":
        return embedding
    sizes = embedding.num_embeddings, embedding.embedding_dim
    head = VocabularyHead(*sizes, tie=embedding, bias=bias is not None)
    if bias is not None:
        head.bias = bias
    return head


def _masters(model: nn.Module, layers: dict[str, Any]) -> dict[str, Tensor]:
    """What tables that are trained hold beside their codes, each tensor once; nothing where all are frozen."""
    parameters = [p for layer in layers.values() for name, p in layer.named_parameters() if name != "bias"]
    if not any(parameter.requires_grad for parameter in parameters):
        return {}
    state = {key: value for key, value in model.state_dict().items() if _inside(key, layers)}
    once: dict[tuple[int, torch.Size], tuple[str, Tensor]] = {}
    for key, value in state.items():
        if value.dtype != torch.uint8 and key.rpartition(".")[0] not in layers:
            once.setdefault((value.data_ptr(), value.shape), (key, value))
    return dict(once.values())


def _inside(key: str, layers: dict[str, Any]) -> bool:
    """Whether a tensor belongs to one of the layers."""
    parts = key.split(".")
    return any(".".join(parts[:count]) in layers for count in range(1, len(parts)))


def _place(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Put a module at a path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def _made(model: nn.Module, path: str) -> nn.Module:
    """The module at a path, made where there is none."""
    module = model
    for name in path.split("."):
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    return module


def _bytes(snapshot: Snapshot) -> Tensor:
    """A snapshot's file as one tensor of bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tables.hfh")
        snapshot.save(path)
        return torch.from_numpy(np.fromfile(path, dtype=np.uint8))


def _snapshot(blob: Tensor) -> Snapshot:
    """The snapshot that a tensor of bytes is, in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tables.hfh")
        path.write_bytes(blob.cpu().numpy().tobytes())
        with hfh_embed.open(path) as mapped:
            arrays = {name: np.array(array) for name, array in mapped.arrays.items()}
            return Snapshot(mapped.spec, arrays)
