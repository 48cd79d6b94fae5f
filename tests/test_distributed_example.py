"""The distributed example gives the losses of one process: with torchrun, and on two hosts that share only a network."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "train_distributed.py"
ARGUMENTS = ["--steps", "3", "--batch", "16"]
SECONDS = 150


def _losses(text: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"step \d+ loss ([\d.]+)", text)]


def _finished(*processes: subprocess.Popen) -> str:
    """What the processes printed, when all have ended well."""
    try:
        texts = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), texts
    return "".join(out for out, _ in texts)


def _started(*command: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def alone() -> list[float]:
    losses = _losses(_finished(_started(sys.executable, str(EXAMPLE), *ARGUMENTS)))
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    return losses


def _torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options, str(EXAMPLE), *ARGUMENTS]


def test_torchrun_with_two_processes_gives_the_losses_of_one(alone: list[float]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = _torchrun("--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", port)
    assert _losses(_finished(_started(*command))) == pytest.approx(alone, rel=1e-4)


def _ip(*arguments: str) -> bool:
    try:
        return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces joined by one cable, 10.203.0.1 and 10.203.0.2."""
    names = (f"hfh-{os.getpid()}-a", f"hfh-{os.getpid()}-b")
    ends = (f"hfh{os.getpid()}a", f"hfh{os.getpid()}b")
    try:
        if not all(_ip("netns", "add", name) for name in names):
            pytest.skip("this machine does not let its users make network namespaces")
        assert _ip(
            "link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1]
        )
        for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            assert _ip("-n", name, "address", "add", f"10.203.0.{number}/24", "dev", end)
            assert _ip("-n", name, "link", "set", end, "up")
            assert _ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            _ip("netns", "delete", name)


def test_two_hosts_give_the_losses_of_one_process(alone: list[float], hosts: tuple[str, str]) -> None:
    nodes = []
    for rank, (host, end) in enumerate(zip(hosts, (f"hfh{os.getpid()}a", f"hfh{os.getpid()}b"), strict=True)):
        where = ["--master-addr", "10.203.0.1", "--master-port", "29500", "--local-addr", f"10.203.0.{rank + 1}"]
        command = _torchrun("--nnodes", "2", "--node-rank", str(rank), *where)
        nodes.append(_started("ip", "netns", "exec", host, "env", f"GLOO_SOCKET_IFNAME={end}", *command))
    assert _losses(_finished(*nodes)) == pytest.approx(alone, rel=1e-4)
