"""A real Redis server of a test's own, to be killed, paused, flushed and restarted."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.service.waiting import until


def free_port() -> int:
    """A port that nobody listens on, below 30,000: a cluster's nodes also take the one 10,000 higher."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """One process on a free port, which it keeps when it is restarted. It keeps nothing on disk unless told."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        program = shutil.which("redis-server")
        if program is None:
            assert os.environ.get("CI") != "true", "redis-server is missing; .ci/run installs it"
            pytest.skip("redis-server is not installed")
        self.folder, self.port = folder, free_port()
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "no", "--daemonize", "no", *arguments]
        self._client = redis.Redis(port=self.port, socket_timeout=5)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._answers, "redis-server answers")

    def _answers(self) -> bool:
        try:
            return bool(self.client().ping())
        except redis.RedisError:
            return False

    def client(self) -> redis.Redis:
        return self._client

    def kill(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait(timeout=10)

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def redis_server(folder: Path, *arguments: str) -> Iterator[RedisServer]:
    server = RedisServer(folder, *arguments)
    try:
        server.start()
        yield server
    finally:
        server.client().close()
        server.kill()
