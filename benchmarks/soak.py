"""Ten minutes at full load: does the memory of the service stay flat?

    python -m benchmarks.soak [--minutes 10]

wrk asks as fast as it can on 32 connections, in turns of 4 s: binary lookups of 64 and of 5,000 ids (these leave the event loop), JSON,
bags, and requests that are refused. After each five turns the resident memory is noted. The first two minutes are left out of the
slope: allocators fill up once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import servers
from benchmarks.load import memory_bytes, random_ids, two_cores, wrk
from benchmarks.record import Recorder
from benchmarks.service import BINARY, ROWS

MOST_MB_PER_HOUR = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    recorder = Recorder("soak")
    server_core, client_core = two_cores()
    plain = {"content-type": "application/json"}
    bags = [np.concatenate(([8], np.arange(0, 64, 8), ids)).astype(np.int64) for ids in random_ids(64, ROWS)]
    turns = [
        ("lookup", [ids.tobytes() for ids in random_ids(64, ROWS)], BINARY, False),
        ("lookup", [ids.tobytes() for ids in random_ids(5_000, ROWS)], BINARY, False),
        ("lookup", [json.dumps({"ids": ids.tolist()}).encode() for ids in random_ids(64, ROWS)], plain, False),
        ("bag", [bag.tobytes() for bag in bags], BINARY, False),
        ("lookup", [b'{"ids": [-1]}', b"{", b'{"ids": 1}'], plain, True),
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        servers.hfh(servers.snapshot(Path(folder), ROWS), server_core) as server,
    ):
        began, requests, series = time.monotonic(), 0, []
        while (elapsed := time.monotonic() - began) < arguments.minutes * 60:
            for route, bodies, headers, refused in turns:
                url = f"http://127.0.0.1:{server.port}/v1/tables/users/{route}"
                load = wrk(
                    url, server.pid, bodies, headers, core=client_core, seconds=4, connections=32, refused=refused
                )
                requests += load.requests
            series.append((round(time.monotonic() - began), memory_bytes(server.pid, "Rss")))
    settled = [(at, rss) for at, rss in series if at > min(120, elapsed / 3)]
    slope = statistics.linear_regression([at for at, _ in settled], [rss for _, rss in settled]).slope
    mb_per_hour = slope * 3600 / 1e6
    recorder.row(
        minutes=round(elapsed / 60, 1),
        requests=requests,
        rss_bytes_first=settled[0][1],
        rss_bytes_last=settled[-1][1],
        mb_per_hour=round(mb_per_hour, 2),
        series=series,
    )
    print(f"{requests:,} requests in {elapsed / 60:.1f} minutes; memory {settled[0][1] / 1e6:.1f} MB after the start,")
    print(f"{settled[-1][1] / 1e6:.1f} MB at the end: {mb_per_hour:+.2f} MB an hour, at most {MOST_MB_PER_HOUR:g}")
    raise SystemExit(mb_per_hour > MOST_MB_PER_HOUR)


if __name__ == "__main__":
    main()
