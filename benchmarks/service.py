"""The service beside what serves vectors today: Redis, KServe and MLServer, by HTTP or RESP on one machine, in one run.

    python -m benchmarks.service [--kserve PYTHON] [--mlserver BINARY] [--feast BINARY] [--only load,memory,client]

1 M x 64 float32 rows, ratio 100; Redis holds the same rows as values of 256 bytes. The server has one core, its client the other;
wrk and redis-benchmark keep 8 connections busy. The measure is CPU time of the server's processes for each request, by the
scheduler's account. Every round measures every server once; medians of the rounds are compared.
KServe, MLServer and Feast need environments of their own (pip install kserve, mlserver, 'feast[redis]'); without them their rows are
left out. Feast's store has 5,000 rows, because it takes minutes to fill with more; its own Redis is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks import servers
from benchmarks.load import Load, cpu_ns, memory_bytes, random_ids, redis_mget, two_cores, wrk
from benchmarks.record import Recorder
from service.client import Client

FEAST_ROWS = 5_000
ROWS, DIM, SIZES = 1_000_000, 64, (16, 64, 512, 4_096)
BINARY = {"content-type": "application/octet-stream", "accept": "application/octet-stream"}
Cell = tuple[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kserve", metavar="PYTHON", help="the interpreter of an environment with kserve")
    parser.add_argument("--mlserver", metavar="BINARY", help="the mlserver command of an environment with it")
    parser.add_argument("--feast", metavar="BINARY", help="the feast command of an environment with feast[redis]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--only", default="load,memory,client")
    arguments = parser.parse_args()
    recorder, targets = Recorder("service"), Targets()
    only = arguments.only.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "load" in only:
            _load(folder, arguments, recorder, targets)
        if "client" in only:
            _client(folder, arguments, recorder, targets)
        if "memory" in only:
            _memory(folder, recorder, targets)
    targets.show()


class Targets:
    """What was aimed at, and whether it was reached."""

    def __init__(self) -> None:
        self._lines: list[tuple[bool, str]] = []

    def check(self, what: str, value: float, most: float, unit: str = "x") -> None:
        """``value`` may be at most ``most``."""
        self._lines.append((value <= most, f"{what}: {value:.3g} {unit}, at most {most:.3g}"))

    def show(self) -> None:
        """Print them all."""
        print("\ntargets")
        for reached, line in self._lines:
            print(f"  {'pass' if reached else 'FAIL'}  {line}")


def _load(folder: Path, arguments: argparse.Namespace, recorder: Recorder, targets: Targets) -> None:
    server_core, client_core = two_cores()
    path = servers.snapshot(folder, ROWS)
    measured: dict[Cell, list[Load]] = defaultdict(list)
    with ExitStack() as stack:
        ours = stack.enter_context(servers.hfh(path, server_core))
        peer = stack.enter_context(servers.redis(path, server_core))
        cells: dict[Cell, Callable[[], Load]] = {}
        for size in SIZES:
            cells["hfh binary", size] = _post(ours, _binary(size), BINARY, arguments, client_core)
            cells["redis MGET", size] = _mget(peer, size, arguments, client_core)
        cells["hfh float16", 64] = _post(
            ours, _binary(64), BINARY | {"accept": BINARY["accept"] + ";dtype=float16"}, arguments, client_core
        )
        cells["hfh JSON", 64] = _post(ours, _json(64), {"content-type": "application/json"}, arguments, client_core)
        if arguments.kserve:
            other = stack.enter_context(servers.kserve(arguments.kserve, ROWS, server_core))
            for size in (64, 512):
                bodies, headers = _oip(size)
                cells["kserve binary", size] = _post(
                    other, bodies, headers, arguments, client_core, "/v2/models/users/infer"
                )
        if arguments.mlserver:
            other = stack.enter_context(servers.mlserver(arguments.mlserver, ROWS, server_core, folder))
            cells["mlserver JSON", 64] = _post(
                other,
                _oip_json(64),
                {"content-type": "application/json"},
                arguments,
                client_core,
                "/v2/models/users/infer",
            )
        if arguments.feast:
            other = stack.enter_context(servers.feast(arguments.feast, FEAST_ROWS, server_core, folder / "feast"))
            bodies = [
                json.dumps({"features": ["users:vector"], "entities": {"user": ids.tolist()}}).encode()
                for ids in random_ids(64, FEAST_ROWS)
            ]
            headers = {"content-type": "application/json"}
            cells["feast + redis JSON", 64] = _post(
                other, bodies, headers, arguments, client_core, "/get-online-features"
            )
        for _ in range(arguments.rounds):
            for cell, measure in cells.items():
                measured[cell].append(measure())
        recorder.row(
            measure="memory of 1 M x 64",
            hfh_rss_bytes=memory_bytes(ours.pid, "Rss"),
            redis_rss_bytes=memory_bytes(peer.pid, "Rss"),
        )
    print(f"{'':20}{'ids':>6}{'CPU us/request':>16}{'requests/s':>12}{'rows/s':>12}")
    for (name, size), loads in measured.items():
        cpu, rate = statistics.median(load.cpu_us for load in loads), statistics.median(load.rate for load in loads)
        print(f"{name:20}{size:6}{cpu:16.1f}{rate:12,.0f}{rate * size:12,.0f}")
        recorder.row(
            measure="load",
            server=name,
            ids=size,
            cpu_us=round(cpu, 2),
            cpu_us_rounds=[round(load.cpu_us, 2) for load in loads],
            requests_per_s=round(rate),
            requests_per_s_rounds=[round(load.rate) for load in loads],
        )
    _load_targets(measured, targets)


def _load_targets(measured: dict[Cell, list[Load]], targets: Targets) -> None:
    def ratio(one: Cell, other: Cell, what: str = "cpu_us") -> float:
        """The median over rounds of one server's figure over the other's in the same round."""
        pairs = zip(measured[one], measured[other], strict=True)
        return statistics.median(getattr(mine, what) / getattr(theirs, what) for mine, theirs in pairs)

    for size, most in ((64, 0.65), (512, 0.22), (4_096, 0.15)):
        targets.check(f"CPU of {size:,} ids / redis", ratio(("hfh binary", size), ("redis MGET", size)), most)
    for size in SIZES[1:]:
        targets.check(
            f"requests/s of redis / ours, {size:,} ids", ratio(("redis MGET", size), ("hfh binary", size), "rate"), 1
        )
    if measured.get(("kserve binary", 64)):
        targets.check("CPU of 64 ids / KServe binary", ratio(("hfh binary", 64), ("kserve binary", 64)), 1 / 6)
    targets.check("CPU of 64 ids as JSON / binary", ratio(("hfh JSON", 64), ("hfh binary", 64)), 2.5)
    print(f"16 ids, no target: {ratio(('hfh binary', 16), ('redis MGET', 16)):.2f} x redis's CPU")


def _post(
    server: servers.Server,
    bodies: list[bytes],
    headers: dict[str, str],
    arguments: argparse.Namespace,
    core: int,
    path: str = "/v1/tables/users/lookup",
) -> Callable[[], Load]:
    url = f"http://127.0.0.1:{server.port}{path}"
    return lambda: wrk(url, server.pid, bodies, headers, core=core, seconds=arguments.seconds)


def _mget(server: servers.Server, size: int, arguments: argparse.Namespace, core: int) -> Callable[[], Load]:
    return lambda: redis_mget(server.port, server.pid, size, ROWS, core=core, seconds=arguments.seconds)


def _binary(size: int) -> list[bytes]:
    return [ids.tobytes() for ids in random_ids(size, ROWS)]


def _json(size: int) -> list[bytes]:
    return [json.dumps({"ids": ids.tolist()}).encode() for ids in random_ids(size, ROWS)]


def _oip_json(size: int) -> list[bytes]:
    return [
        json.dumps({"inputs": [{"name": "ids", "shape": [size], "datatype": "INT64", "data": ids.tolist()}]}).encode()
        for ids in random_ids(size, ROWS)
    ]


def _oip(size: int) -> tuple[list[bytes], dict[str, str]]:
    """Requests of the Open Inference Protocol with binary tensors, and their headers."""
    tensor = {"name": "ids", "shape": [size], "datatype": "INT64", "parameters": {"binary_data_size": size * 8}}
    outputs = [{"name": "rows", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return [head + body for body in _binary(size)], headers


def _client(folder: Path, arguments: argparse.Namespace, recorder: Recorder, targets: Targets) -> None:
    """A call of service.client against a socket that sends the same bytes and reads an answer of known length."""
    server_core, client_core = two_cores()
    path = servers.snapshot(folder, ROWS)
    ids = random_ids(64, ROWS)
    own, bare = [], []
    before = os.sched_getaffinity(0)
    with servers.hfh(path, server_core) as server, Client(f"http://127.0.0.1:{server.port}") as client:
        os.sched_setaffinity(0, {client_core})
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head = (
                b"POST /v1/tables/users/lookup HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\n"
                b"accept: application/octet-stream;dtype=float32\r\ncontent-length: %d\r\n\r\n" % (64 * 8)
            )

            def ask(wanted: np.ndarray) -> np.ndarray:
                connection.sendall(head + wanted.tobytes())
                answer = connection.recv(65536)
                start = answer.index(b"\r\n\r\n") + 4
                while len(answer) < start + 64 * DIM * 4:
                    answer += connection.recv(65536)
                return np.frombuffer(answer, dtype="<f4", offset=start).reshape(64, DIM)

            assert np.array_equal(ask(ids[0]), client.lookup("users", ids[0]))
            for _ in range(arguments.rounds):
                bare.append(_time(ask, ids))
                own.append(_time(lambda wanted: client.lookup("users", wanted), ids))
        os.sched_setaffinity(0, before)
    ratio = statistics.median(mine / theirs for mine, theirs in zip(own, bare, strict=True))
    print(
        f"client.py {statistics.median(own):.1f} us, bare socket {statistics.median(bare):.1f} us for 64 ids: {ratio:.2f} x"
    )
    recorder.row(
        measure="client",
        ids=64,
        client_us=[round(value, 1) for value in own],
        bare_socket_us=[round(value, 1) for value in bare],
        ratio=round(ratio, 3),
    )
    targets.check("client.py / bare socket, 64 ids", ratio, 1.3)


def _time(ask: Callable[[np.ndarray], object], ids: list[np.ndarray], calls: int = 3_000) -> float:
    """Microseconds of one call."""
    for wanted in ids:
        ask(wanted)
    began = time.perf_counter()
    for number in range(calls):
        ask(ids[number % len(ids)])
    return (time.perf_counter() - began) / calls * 1e6


def _memory(folder: Path, recorder: Recorder, targets: Targets) -> None:
    """Resident memory with 10 M x 64 after every line of the pool was read, and how workers share it."""
    rows = 10_000_000
    path = servers.snapshot(folder, rows)
    code = "import os; print(open('/proc/self/smaps_rollup').read())"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    interpreter = int(text.split("Rss:")[1].split()[0]) * 1024
    with servers.hfh(path, None) as server:
        _read_everything(server.port, rows)
        resident = memory_bytes(server.pid, "Rss")
    beyond = (resident - interpreter) / 1e6
    recorder.row(
        measure="memory of 10 M x 64",
        rss_bytes=resident,
        interpreter_rss_bytes=interpreter,
        snapshot_bytes=path.stat().st_size,
    )
    targets.check("memory of 10 M x 64 beyond the interpreter", beyond, 120, "MB")
    with servers.hfh(path, None, "--workers", "2") as server:
        for _ in range(20):
            _read_everything(server.port, rows)
        workers = [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]
        shares = {kind: [memory_bytes(pid, kind) for pid in (server.pid, *workers)] for kind in ("Rss", "Pss")}
        before = [cpu_ns(pid) for pid in workers]
        url = f"http://127.0.0.1:{server.port}/v1/tables/users/lookup"
        wrk(url, server.pid, _binary(64), BINARY, core=two_cores()[1], connections=32)
        spent = [after - earlier for after, earlier in zip(map(cpu_ns, workers), before, strict=True)]
    busiest = max(spent) / sum(spent)
    print(f"2 workers and their parent: RSS {sum(shares['Rss']) / 1e6:.0f} MB, PSS {sum(shares['Pss']) / 1e6:.0f} MB;")
    print(f"of the work of 32 connections the busier one did {busiest:.0%}")
    recorder.row(
        measure="2 workers, 10 M x 64",
        rss_bytes=shares["Rss"],
        pss_bytes=shares["Pss"],
        busier_worker_share=round(busiest, 3),
    )


def _read_everything(port: int, rows: int) -> None:
    """Rows of enough ids to touch every page of the pool."""
    with Client(f"http://127.0.0.1:{port}") as client:
        for ids in random_ids(10_000, rows, 60):
            client.lookup("users", ids)


if __name__ == "__main__":
    main()
