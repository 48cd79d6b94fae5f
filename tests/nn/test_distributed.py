"""Two processes with half a batch each learn as one process with the whole batch does."""

import json
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hfh_embed import nn as hnn
from hfh_embed.errors import SpecError

STEPS, SECONDS = 4, 120
POOL_OPTIMIZERS = {
    "PoolSGD": lambda model: hnn.PoolSGD(model, lr=0.5),
    "PoolAdam": lambda model: hnn.PoolAdam(model, lr=0.01),
}
OPTIMIZERS = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.5),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    **POOL_OPTIMIZERS,
}


class _Model(nn.Module):
    """Users, the bags of goods that they had, and a dense layer, in one loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        pool = hnn.Pool.for_tables({"users": (2_000, 32), "goods": (500, 16)}, ratio=30, form="line", std=0.1)
        self.users = hnn.HFHEmbedding(2_000, 32, pool=pool, name="users")
        self.goods = hnn.HFHEmbeddingBag(500, 16, pool=pool, name="goods", mode="sum")
        self.dense = nn.Linear(32, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        bags = self.goods(torch.stack((ids % 500, ids * 7 % 500), dim=1))
        return (self.dense(self.users(ids)) - bags - 0.1).square().mean()


def _train(model: nn.Module, optimizer: str) -> list[float]:
    """The loss before each step, of all processes together."""
    ids = torch.arange(64)
    if dist.is_initialized():
        ids = ids.chunk(2)[dist.get_rank()]
    steps = [OPTIMIZERS[optimizer](model)]
    if optimizer in POOL_OPTIMIZERS:
        dense = [parameter for name, parameter in model.named_parameters() if "dense" in name]
        steps.append(torch.optim.SGD(dense, lr=0.5))
    curve = []
    for _ in range(STEPS):
        for step in steps:
            step.zero_grad()
        loss = model(ids)
        loss.backward()
        for step in steps:
            step.step()
        loss = loss.detach()
        if dist.is_initialized():
            dist.all_reduce(loss)
        curve.append(float(loss) / (2 if dist.is_initialized() else 1))
    return curve


def _sharded(optimizer: str) -> list[float]:
    mesh = init_device_mesh("cpu", (2,))
    model = _Model()
    if dist.get_rank():
        with torch.no_grad():
            model.users.pool.store.values.zero_()
    fully_shard(model, mesh=mesh, ignored_params=hnn.replicate(model))
    assert model.dense.weight.to_local().shape == (8, 32)
    return _train(model, optimizer)


def _refusal() -> str:
    with pytest.raises(SpecError) as refused:
        fully_shard(_Model(), mesh=init_device_mesh("cpu", (2,)))
    return str(refused.value)


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {f"DDP {name}": _train(nn.parallel.DistributedDataParallel(_Model()), name) for name in OPTIMIZERS}
    found |= {f"FSDP2 {name}": _sharded(name) for name in ("SGD", "PoolAdam")}
    found["refusal"] = _refusal()
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What two processes found, once for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    processes = mp.spawn(_worker, args=(str(folder),), nprocs=2, join=False)
    until = time.monotonic() + SECONDS
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < until, f"the processes did not end within {SECONDS} s"
    finally:
        for process in processes.processes:
            process.kill()
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_processes_learn_as_one_with_the_whole_batch(found: dict, optimizer: str) -> None:
    alone = _train(_Model(), optimizer)
    assert found[f"DDP {optimizer}"] == pytest.approx(alone, rel=1e-4)
    assert alone[-1] < 0.9 * alone[0]


@pytest.mark.parametrize("optimizer", ["SGD", "PoolAdam"])
def test_fsdp_leaves_replicated_tables_alone_and_they_learn_the_same(found: dict, optimizer: str) -> None:
    assert found[f"FSDP2 {optimizer}"] == pytest.approx(_train(_Model(), optimizer), rel=1e-4)


def test_fsdp_is_refused_the_values_of_a_pool_and_told_what_to_do(found: dict) -> None:
    assert "ignored_params=hnn.replicate(model)" in found["refusal"]


def test_replicating_needs_processes_and_tables() -> None:
    with pytest.raises(SpecError, match="init_process_group"):
        hnn.replicate(_Model())
