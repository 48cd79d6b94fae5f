"""When batches and the cache pay: CPU time of the service for each request with each switched on and off.

    python -m benchmarks.batching

Two tables: 1 M x 64 of the default form, and a coded one of 30,522 x 384 (the shape of all-MiniLM-L6-v2's token table, 16 codes of
12 bits and a map), whose rows are dear. Ids follow Zipf's law (exponent 1.1, ranks scattered over the ids), as words and products do.
wrk keeps 32 connections busy. Every round measures every setting once; medians are shown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks import servers
from benchmarks.load import Load, two_cores, wrk
from benchmarks.record import Recorder
from benchmarks.service import BINARY
from hfh_embed.layout import SnapshotSpec
from hfh_embed.spec import CodeChunk, CodedSpec, MapSpec, TableSpec

SETTINGS = {
    "neither": ("--batching", "off"),
    "batching": ("--batching", "on"),
    "cache": ("--batching", "off", "--cache-bytes", "16000000"),
    "both": ("--batching", "on", "--cache-bytes", "16000000"),
}
SIZES = (16, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    recorder = Recorder("batching")
    server_core, client_core = two_cores()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        tables = {
            "default, 1 M x 64": (servers.snapshot(folder, 1_000_000), 1_000_000),
            "coded, 30,522 x 384": (_coded(folder), 30_522),
        }
        running = {
            (table, setting): stack.enter_context(servers.hfh(path, server_core, *flags))
            for table, (path, _) in tables.items()
            for setting, flags in SETTINGS.items()
            if "cache" not in flags[-2] or table.startswith("coded")
        }
        measured: dict[tuple[str, str, int], list[Load]] = {}
        for _ in range(arguments.rounds):
            for (table, setting), server in running.items():
                for size in SIZES:
                    bodies = [ids.tobytes() for ids in _zipf(size, tables[table][1])]
                    url = f"http://127.0.0.1:{server.port}/v1/tables/users/lookup"
                    load = wrk(url, server.pid, bodies, BINARY, core=client_core, connections=32)
                    measured.setdefault((table, setting, size), []).append(load)
    for (table, setting, size), loads in measured.items():
        cpu = statistics.median(load.cpu_us for load in loads)
        print(f"{table:22}{setting:12}{size:4} ids {cpu:8.1f} us")
        recorder.row(
            table=table,
            setting=setting,
            ids=size,
            connections=32,
            cpu_us=round(cpu, 2),
            cpu_us_rounds=[round(load.cpu_us, 2) for load in loads],
            requests_per_s=round(statistics.median(load.rate for load in loads)),
        )


def _coded(folder: Path) -> Path:
    chunks = tuple(CodeChunk(24 * number, 24, 12) for number in range(16))
    table = TableSpec("users", 30_522, 384, latent_dim=384, coded=CodedSpec(chunks, 16), map=MapSpec(16))
    return servers.saved(folder / "coded.hfh", SnapshotSpec((table,)))


def _zipf(count: int, rows: int, number: int = 512) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    weights = np.arange(1, rows + 1) ** -1.1
    ranks = np.searchsorted(np.cumsum(weights / weights.sum()), generator.random(count * number))
    ids = np.random.default_rng(2).permutation(rows)[np.minimum(ranks, rows - 1)].astype(np.int64)
    return list(ids.reshape(number, count))


if __name__ == "__main__":
    main()
