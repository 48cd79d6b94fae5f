"""The values of HFH layers in several processes: small enough that every process keeps them all."""

from __future__ import annotations

import torch
from torch import nn

from hfh_embed.errors import SpecError
from hfh_embed.nn.compiled import several_processes
from hfh_embed.nn.embedding import Lookup

__all__ = ["replicate"]


def replicate(model: nn.Module) -> set[nn.Parameter]:
    """Keep a copy of the model's tables in every process: take the first one's, and average their gradients in every backward pass.

    For FSDP2, which then leaves them alone: ``fully_shard(model, ignored_params=hnn.replicate(model))``.
    ``DistributedDataParallel`` does this by itself. Every process has to look something up in every backward pass.

    Returns:
        The parameters of all HFH layers.

    Raises:
        SpecError: no process group was initialized, or the model has no HFH layers.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise SpecError("replicate is for several processes; call torch.distributed.init_process_group first")
    layers = [module for module in model.modules() if isinstance(module, Lookup)]
    parameters = {parameter: None for layer in layers for parameter in layer.parameters()}
    if not layers:
        raise SpecError("the model has no HFH layers to replicate; see hfh_embed.nn.compress")
    if several_processes():
        with torch.no_grad():
            for tensor in [*parameters, *(buffer for layer in layers for buffer in layer.buffers())]:
                torch.distributed.broadcast(tensor, src=0)
                torch.autograd.graph.increment_version(tensor)
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_average)  # type: ignore[no-untyped-call]
    return set(parameters)


def _average(parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    torch.distributed.all_reduce(parameter.grad)
    parameter.grad /= torch.distributed.get_world_size()
