"""The servers that benchmarks/service.py compares, each in a process of its own, pinned to one core."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import hfh_embed
from hfh_embed.budget import plan
from hfh_embed.layout import SnapshotSpec
from hfh_embed.snapshot import Snapshot

__all__ = ["Server", "feast", "hfh", "kserve", "mlserver", "redis", "saved", "snapshot"]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Server:
    """A running server."""

    pid: int
    port: int


def snapshot(folder: Path, rows: int, dim: int = 64, ratio: float = 100) -> Path:
    """A table "users" of the default form at this ratio."""
    return saved(folder / f"users-{rows}.hfh", plan({"users": (rows, dim)}, ratio))


def saved(path: Path, spec: SnapshotSpec) -> Path:
    """A snapshot of random bytes, as good as trained ones here: a row costs the same."""
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.integers(0, 256, array.shape, dtype=np.uint8)
        if array.dtype == np.uint8
        else np.full(array.shape, 0.0737219, dtype=array.dtype)
        for name, array in spec.arrays().items()
    }
    Snapshot(spec, arrays).save(path)
    return path


@contextmanager
def _running(command: list[str], core: int | None, **options: object) -> Iterator[subprocess.Popen[str]]:
    pinned = ["taskset", "-c", str(core), *command] if core is not None else command
    with subprocess.Popen(pinned, text=True, **options) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def hfh(path: Path, core: int | None, *flags: str) -> Iterator[Server]:
    """`hfh serve`."""
    command = [sys.executable, "-m", "hfh_embed.cli", "serve", str(path), "--port", "0", *flags]
    with _running(command, core, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        found = re.search(r"http://[\d.]+:(\d+)", process.stdout.readline())
        if found is None:
            raise SystemExit("hfh serve did not start")
        yield Server(process.pid, int(found[1]))


@contextmanager
def redis(path: Path, core: int) -> Iterator[Server]:
    """redis-server without persistence, with the rows of the table's ids as values of 4 D bytes."""
    port = _free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with _running(command, core, stdout=subprocess.DEVNULL) as process:
        _wait_for(port)
        table = hfh_embed.open(path)["users"]
        with subprocess.Popen(
            ["redis-cli", "-p", str(port), "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as loading:
            assert loading.stdin is not None
            for start in range(0, table.num_embeddings, 10_000):
                rows = table.lookup(np.arange(start, min(start + 10_000, table.num_embeddings)))
                size = rows.shape[1] * 4
                loading.stdin.write(
                    b"".join(
                        b"*3\r\n$3\r\nSET\r\n$16\r\nkey:%012d\r\n$%d\r\n%s\r\n" % (start + number, size, row.tobytes())
                        for number, row in enumerate(rows)
                    )
                )
            loading.stdin.close()
            loading.wait()
        yield Server(process.pid, port)


@contextmanager
def kserve(python: str, rows: int, core: int) -> Iterator[Server]:
    """KServe's own model server over a dense float32 array of the same size."""
    port, grpc = _free_port(), _free_port()
    command = [python, str(HERE / "peers" / "kserve_table.py"), "--http_port", str(port), "--grpc_port", str(grpc)]
    command += ["--rows", str(rows), "--enable_grpc", "false"]
    with _running(command, core, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _wait_for(port, "/v2/models/users/ready")
        yield Server(process.pid, port)


@contextmanager
def mlserver(binary: str, rows: int, core: int, folder: Path) -> Iterator[Server]:
    """MLServer with a custom runtime over the same array."""
    port = _free_port()
    (folder / "settings.json").write_text(
        f'{{"http_port": {port}, "grpc_port": {_free_port()}, "metrics_port": {_free_port()}, "parallel_workers": 0, "debug": false}}'
    )
    (folder / "model-settings.json").write_text(
        f'{{"name": "users", "implementation": "mlserver_table.Users", "parameters": {{"extra": {{"rows": {rows}}}}}}}'
    )
    (folder / "mlserver_table.py").write_text((HERE / "peers" / "mlserver_table.py").read_text())
    with _running(
        [binary, "start", str(folder)], core, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        _wait_for(port, "/v2/models/users/ready")
        yield Server(process.pid, port)


@contextmanager
def feast(binary: str, rows: int, core: int, folder: Path) -> Iterator[Server]:
    """Feast's feature server; the Redis that it asks is not counted."""
    folder.mkdir()
    port, store = _free_port(), _free_port()
    command = ["redis-server", "--port", str(store), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with _running(command, core, stdout=subprocess.DEVNULL):
        _wait_for(store)
        python = str(Path(binary).parent / "python")
        subprocess.run([python, str(HERE / "peers" / "feast_table.py"), str(folder), str(store), str(rows)], check=True)
        serve = [binary, "--chdir", str(folder), "serve", "--port", str(port), "--no-access-log"]
        with _running(serve, core, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            _wait_for(port, "/health")
            yield Server(process.pid, port)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, path: str | None = None, seconds: float = 60) -> None:
    """Until something answers there."""
    end = time.monotonic() + seconds
    while True:
        try:
            if path is None:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            else:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise SystemExit(f"nothing answered on port {port} within {seconds:g} s") from None
            time.sleep(0.2)
