"""A service in this process, and one in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from hfh_embed.layout import SnapshotSpec
from hfh_embed.snapshot import Snapshot
from service.app import create_app
from service.settings import Settings
from service.state import State
from tests.builders import CASES, N, random_arrays

LIMITS = {"max_ids": 500, "max_body_bytes": 20_000, "thread_ids": 50}


@pytest.fixture(scope="session")
def snapshot_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables on one pool: "users" refuses unknown ids and has a vocabulary, "goods" gives zeros and has none."""
    table, pool = CASES["words-1"]
    goods = table.replace(name="goods", unknown="zero", padding_id=7)
    assert pool is not None
    spec = SnapshotSpec((table, goods), (pool,))
    path = tmp_path_factory.mktemp("served") / "tables.hfh"
    keys = [f"key {number}" for number in range(N)]
    Snapshot(spec, random_arrays(spec), vocabularies={"users": keys}).save(path)
    return path


@pytest.fixture(scope="session")
def client(snapshot_path: Path) -> Iterator[TestClient]:
    state = State.load(Settings(paths=(snapshot_path,), **LIMITS))  # type: ignore[arg-type]
    with TestClient(create_app(state), raise_server_exceptions=False) as client:
        yield client


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def serving(
    *arguments: str, executable: str = sys.executable, stderr: str | None = None, **environment: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`hfh serve` on a free port: its URL and process. It is asked to stop at the end, and must stop with 0.

    Its stderr goes to the file of that name; without one it is shown when something failed.
    """
    command = [executable, "-m", "hfh_embed.cli", "serve", *arguments, "--port", "0"]
    with (
        open(stderr, "r+" if stderr == "/dev/full" else "w+") if stderr else tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | environment
        ) as process,
    ):
        assert process.stdout is not None

        def errors() -> str:
            return Path(f"/proc/self/fd/{log.fileno()}").read_text() if stderr != "/dev/full" else ""

        try:
            line = process.stdout.readline()
            if "http://" not in line:
                raise AssertionError(f"it did not start: {line}{errors()}")
            yield line.split()[-1], process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=30)
            process.stdout.close()
        assert code == 0, errors()
