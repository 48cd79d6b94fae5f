"""Two processes with half a batch each move the pool as one process with the whole batch does."""

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from hfh_embed import nn as hnn


def _model() -> nn.ModuleDict:
    torch.manual_seed(0)
    pool = hnn.Pool.for_tables({"users": (2_000, 32), "goods": (500, 16)}, ratio=30, std=0.1)
    tables = {"users": hnn.HFHEmbedding(2_000, 32, pool=pool, name="users")}
    tables["goods"] = hnn.HFHEmbedding(500, 16, pool=pool, name="goods")
    return nn.ModuleDict(tables)


class _Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = _model()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.tables["users"](ids).square().mean() + self.tables["goods"](ids % 500).square().mean()


def _train(model: nn.Module, ids: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(ids).backward()
        optimizer.step()


def _worker(rank: int, port: int, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = _Step()
    _train(nn.parallel.DistributedDataParallel(model), torch.arange(64)[rank * 32 : (rank + 1) * 32])
    if rank == 0:
        torch.save(model.state_dict(), out)
    dist.destroy_process_group()


def test_two_processes_equal_one_with_the_whole_batch(tmp_path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, args=(port, str(tmp_path / "state.pt")), nprocs=2)
    alone = _Step()
    _train(alone, torch.arange(64))
    together = torch.load(tmp_path / "state.pt", weights_only=True)
    mine = alone.state_dict()
    pool = "tables.users.table.pool.store.values"
    assert torch.allclose(together[pool], mine[pool], atol=1e-6)
    assert not torch.equal(mine[pool], _Step().state_dict()[pool])
