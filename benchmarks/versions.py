"""Versions and fresh rows: how soon a write is seen elsewhere, how soon Redis is followed again, what the overlay costs a lookup.

    python -m benchmarks.versions

Two services of one snapshot (1 M x 64) and a redis-server of its own, all on this machine. Times are of the whole way: HTTP to one
service, HTTP to the other. A lookup's cost is a ratio to the plain table's in the same run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np

import hfh_embed
from benchmarks.record import Recorder
from hfh_embed.layout import SnapshotSpec
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import PoolSpec
from service.catalog import Served
from service.fresh_rows import FreshRows
from tests.builders import random_arrays, shared_table
from tests.service.conftest import serving
from tests.service.redis_server import RedisServer, redis_server

N, D = 1_000_000, 64
ROWS = "/v1/tables/users/rows"
BINARY = {"content-type": "application/octet-stream"}


def _snapshot(path: Path, seed: int) -> None:
    pool = PoolSpec("pool", 2_560_000 * 8)
    spec = SnapshotSpec((shared_table(pool, num_embeddings=N, embedding_dim=D, num_hashes=8),), (pool,))
    Snapshot(spec, random_arrays(spec, seed)).save(path)


def _put(client: httpx.Client, ids: np.ndarray, rows: np.ndarray) -> int:
    content = np.int64(len(ids)).tobytes() + ids.astype("<i8").tobytes() + rows.astype("<f4").tobytes()
    return client.put(ROWS, content=content, headers=BINARY).status_code


def _entry(client: httpx.Client, id_: int) -> float:
    answer = client.post("/v1/tables/users/lookup", content=np.int64(id_).tobytes(), headers=BINARY)
    return float(np.frombuffer(answer.content, "<f4")[0])


def _until(holds: Callable[[], bool]) -> float:
    began = time.perf_counter()
    while not holds():
        time.sleep(0.0005)
    return time.perf_counter() - began


def _spread(name: str, seconds: list[float]) -> dict[str, Any]:
    """Milliseconds: median, 99th percentile and largest."""
    ms = np.array(seconds) * 1e3
    found = (("median", np.median(ms)), ("p99", np.percentile(ms, 99)), ("largest", ms.max()))
    return {"measured": name, "repeats": len(ms)} | {f"{key}_ms": round(float(value), 2) for key, value in found}


def _visible(one: httpx.Client, other: httpx.Client) -> list[dict[str, Any]]:
    puts, seen = [], []
    for number in range(1, 301):
        began = time.perf_counter()
        assert _put(one, np.array([number]), np.full((1, D), number, np.float32)) == 200
        puts.append(time.perf_counter() - began)
        seen.append(_until(lambda number=number: _entry(other, number) == number))
    bulk = []
    for number in range(1, 11):
        ids = np.arange(10_000)
        assert _put(one, ids, np.full((len(ids), D), 1_000 + number, np.float32)) == 200
        bulk.append(_until(lambda number=number: _entry(other, 9_999) == 1_000 + number))
    return [
        _spread("PUT of one row", puts),
        _spread("one row, from the PUT's answer until the other service serves it", seen),
        _spread("10,000 rows, from the PUT's answer until the other service serves the last", bulk),
    ]


def _fresh(client: httpx.Client) -> bool:
    return not client.get("/readyz").json()["overlay"]["stale"]


def _recovery(redis: RedisServer, one: httpx.Client, other: httpx.Client) -> list[dict[str, Any]]:
    refused, restarted, written, resumed = [], [], [], []
    for number in range(10):
        redis.kill()
        began = time.perf_counter()
        assert _put(one, np.array([1]), np.zeros((1, D), np.float32)) == 424
        refused.append(time.perf_counter() - began)
        time.sleep(2)
        redis.start()  # empty: the services give it 10,000 rows back
        restarted.append(_until(lambda: _fresh(one) and _fresh(other)))
        value = 5_000 + number
        began = time.perf_counter()
        _until(lambda value=value: _put(one, np.array([2]), np.full((1, D), value, np.float32)) == 200)
        _until(lambda value=value: _entry(other, 2) == value)
        written.append(time.perf_counter() - began)
    for _ in range(5):
        redis.pause()
        assert _put(one, np.array([1]), np.zeros((1, D), np.float32)) == 424
        time.sleep(2)
        redis.resume()
        resumed.append(_until(lambda: _fresh(one) and _fresh(other)))
    return [
        _spread("Redis killed: until a write is refused", refused),
        _spread("Redis restarted empty, 10,000 rows: until both services follow it again", restarted),
        _spread("then: a write until the other service serves it", written),
        _spread("Redis paused for 2 s and resumed: until both services follow it again", resumed),
    ]


def _activation(client: httpx.Client, folder: Path) -> list[dict[str, Any]]:
    old = client.get("/v1/snapshots").json()["active"][0]
    first, again = [], []
    for seed in (2, 3, 4):
        path = folder / f"{seed}.hfh"
        _snapshot(path.with_suffix(".part"), seed)
        path.with_suffix(".part").rename(path)
        new = hfh_embed.inspect(path).version
        for seconds, version in ((first, new), (again, old)):
            began = time.perf_counter()
            assert client.post(f"/v1/snapshots/{version}/activate").status_code == 200
            seconds.append(time.perf_counter() - began)
    return [
        _spread("activating a new snapshot of 2.6 MB, verified", first),
        _spread("activating the one of before", again),
    ]


def _lookups(path: Path) -> list[dict[str, Any]]:
    snapshot = hfh_embed.open(path)
    table, generator = snapshot["users"], np.random.default_rng(0)
    fresh = FreshRows()
    fresh.put(np.arange(0, N, 10), np.ones(N // 10, np.int64), np.ones((N // 10, D), np.float32))
    calls = {"empty overlay": Served(table, snapshot), "100,000 rows in the overlay": Served(table, snapshot, fresh)}
    found = []
    for count in (64, 4_096):
        ids = generator.integers(0, N, count)
        missed = ids - ids % 10 + 1
        cases: dict[str, Callable[[], object]] = {"plain table": lambda ids=ids: table.lookup(ids, dtype=np.float32)}
        for name, served in calls.items():
            cases[name] = lambda served=served, ids=ids: served.lookup(ids, np.float32)
        cases["100,000 rows in the overlay, none asked for"] = lambda ids=missed: Served(table, snapshot, fresh).lookup(
            ids, np.float32
        )
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(300):
            for name, call in cases.items():  # side by side, so that noise meets all
                began = time.perf_counter()
                for _ in range(5):
                    call()
                times[name].append((time.perf_counter() - began) / 5)
        plain = float(np.median(times["plain table"]))
        for name, seconds in times.items():
            us = float(np.median(seconds)) * 1e6
            more = us - plain * 1e6
            found.append({"measured": f"lookup of {count} ids: {name}", "us": round(us, 2), "more_us": round(more, 2)})
    return found


def main() -> None:
    """Measure and record everything."""
    recorder = Recorder("versions")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, snapshots = Path(name), Path(name) / "snapshots"
        snapshots.mkdir()
        _snapshot(snapshots / "1.hfh", 1)
        redis = stack.enter_context(redis_server(folder))
        options = (str(snapshots), "--redis-url", redis.url)
        clients = []
        for _ in range(2):
            url, _ = stack.enter_context(serving(*options))
            clients.append(stack.enter_context(httpx.Client(base_url=url, timeout=30)))
        rows = [*_visible(*clients), *_recovery(redis, *clients), *_activation(clients[0], snapshots)]
        for row in [*rows, *_lookups(snapshots / "1.hfh")]:
            recorder.row(**row)
            print(row)


if __name__ == "__main__":
    main()
