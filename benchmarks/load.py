"""Load on a server and what it cost that server: requests answered, and CPU time by the scheduler's own account."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Load", "cpu_ns", "memory_bytes", "random_ids", "redis_mget", "two_cores", "wrk"]

LUA = """
local requests, turn = {}, 0
function init(args)
  for number = 1, tonumber(args[2]) do
    local file = io.open(args[1] .. "/" .. number, "rb")
    requests[number] = wrk.format("POST", nil, wrk.headers, file:read("*all"))
    file:close()
  end
end
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
"""


@dataclass(frozen=True)
class Load:
    """What one run answered and cost."""

    requests: int
    seconds: float
    cpu_us: float
    """CPU time of the server for each request."""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def cpu_ns(pid: int) -> int:
    """Nanoseconds on a CPU of a process, its threads and its children, kernel time included."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in threads) + sum(cpu_ns(int(child)) for child in children)


def memory_bytes(pid: int, kind: str) -> int:
    """``Rss`` or ``Pss`` of one process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(rf"^{kind}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def wrk(
    url: str,
    pid: int,
    bodies: Sequence[bytes],
    headers: dict[str, str],
    *,
    core: int,
    seconds: float = 1.0,
    connections: int = 8,
    refused: bool = False,
) -> Load:
    """POST these bodies in turn, as fast as answers come. Any answer but 200 is an error of the benchmark, unless ``refused``."""
    with tempfile.TemporaryDirectory() as folder:
        for number, body in enumerate(bodies, 1):
            Path(folder, str(number)).write_bytes(body)
        script = Path(folder, "load.lua")
        script.write_text(LUA)
        given = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
        command = ["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
        before = cpu_ns(pid)
        done = subprocess.run(
            [*command, "-s", str(script), *given, url, "--", folder, str(len(bodies))],
            capture_output=True,
            text=True,
            check=False,
        )
        spent = cpu_ns(pid) - before
    found = re.search(r"(\d+) requests in ([\d.]+)(m?s)", done.stdout)
    if done.returncode or found is None or ("Non-2xx" in done.stdout) != refused or "Socket errors" in done.stdout:
        raise SystemExit(f"wrk on {url} failed:\n{done.stdout}{done.stderr}")
    requests, length = int(found[1]), float(found[2]) * (0.001 if found[3] == "ms" else 1)
    return Load(requests, length, spent / 1000 / max(requests, 1))


def redis_mget(
    port: int, pid: int, count: int, rows: int, *, core: int, seconds: float = 1.0, connections: int = 8
) -> Load:
    """MGET of ``count`` random keys, by redis-benchmark; calls are counted by the server."""
    keys = ["key:__rand_int__"] * count
    command = ["taskset", "-c", str(core), "redis-benchmark", "-p", str(port), "-c", str(connections), "-r", str(rows)]
    with subprocess.Popen(
        [*command, "-n", "100000000", "MGET", *keys], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as load:
        try:
            time.sleep(0.3)
            first, began, before = _calls(port), time.perf_counter(), cpu_ns(pid)
            time.sleep(seconds)
            last, ended, after = _calls(port), time.perf_counter(), cpu_ns(pid)
        finally:
            load.terminate()
    return Load(last - first, ended - began, (after - before) / 1000 / max(last - first, 1))


def _calls(port: int) -> int:
    text = subprocess.run(
        ["redis-cli", "-p", str(port), "INFO", "commandstats"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"cmdstat_mget:calls=(\d+)", text)
    return int(found[1]) if found else 0


def random_ids(count: int, rows: int, number: int = 64, seed: int = 0) -> list[np.ndarray]:
    """``number`` requests of ``count`` random ids."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, rows, count, dtype=np.int64) for _ in range(number)]


def two_cores() -> tuple[int, int]:
    """One core for servers, another for their clients; on a machine with one core they share it."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        print("one core only: requests/s measure server and client together", file=sys.stderr)
    return cores[0], cores[-1]
