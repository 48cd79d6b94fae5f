"""Services as processes while versions change and Redis is killed, paused, flushed and restarted.

Every vector that was answered is compared with the reference of the version that the answer names.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest

import hfh_embed
from tests.service.conftest import serving
from tests.service.redis_server import RedisServer, redis_server
from tests.service.test_snapshots import write
from tests.service.waiting import until

BINARY = {"content-type": "application/octet-stream"}
ROWS = "/v1/tables/users/rows"


class Watcher:
    """Clients that ask all the time, and what they were answered that they should not have been."""

    def __init__(self, urls: list[str], references: dict[str, np.ndarray], written: dict[int, list[float]]) -> None:
        self.references, self.written = references, written
        self.wrong: list[str] = []
        self.answered = self.stale = 0
        self.versions: set[str] = set()
        self.slowest_s = 0.0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(url, seed)) for seed, url in enumerate(urls)]

    def __enter__(self) -> Watcher:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def _ask(self, url: str, seed: int) -> None:
        generator = np.random.default_rng(seed)
        with httpx.Client(base_url=url, timeout=10) as client:
            while not self._stop.is_set() and len(self.wrong) < 5:
                try:
                    self._once(client, generator.integers(0, 400, 30))
                except Exception as error:
                    self.wrong.append(f"{url}: {error!r}")

    def _once(self, client: httpx.Client, ids: np.ndarray) -> None:
        allowed = {id_: list(values) for id_, values in self.written.items()}
        began = time.monotonic()
        answer = client.post("/v1/tables/users/lookup", content=ids.astype("<i8").tobytes(), headers=BINARY)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        if answer.status_code != 200:
            self.wrong.append(answer.text)
            return
        version = answer.headers["x-hfh-version"]
        rows = np.frombuffer(answer.content, "<f4").reshape(30, 40)
        expected = self.references[version][ids]
        for at in np.flatnonzero((rows != expected).any(axis=1)):
            if not any((rows[at] == value).all() for value in allowed.get(int(ids[at]), ())):
                self.wrong.append(f"id {ids[at]} of version {version} answered {rows[at, :4]}")
        self.answered += 1
        self.versions.add(version)
        self.stale += answer.headers.get("x-hfh-overlay") == "stale"


def references(folder: Path) -> dict[str, np.ndarray]:
    found = [hfh_embed.open(path) for path in folder.glob("*.hfh")]
    return {snapshot.version: snapshot["users"].lookup(np.arange(400)) for snapshot in found}


def put(url: str, id_: int, value: float) -> int:
    return httpx.put(f"{url}{ROWS}", json={"ids": [id_], "embeddings": [[value] * 40]}, timeout=10).status_code


def value_of(url: str, id_: int) -> float:
    answer = httpx.post(f"{url}/v1/tables/users/lookup", json={"ids": [id_]}, timeout=10)
    value: float = answer.json()["embeddings"][0][0]
    return value


def overlay_of(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/readyz", timeout=10).json()["overlay"]
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hundred_activations_under_load_fail_no_request_and_mix_no_versions(tmp_path, workers: int) -> None:
    versions = [write(tmp_path / "a.hfh", 1, age_s=100), write(tmp_path / "b.hfh", 2)]
    with serving(str(tmp_path), "--workers", str(workers)) as (url, _):
        with Watcher([url] * 4, references(tmp_path), {}) as watcher, httpx.Client(base_url=url, timeout=30) as client:
            for number in range(120):
                if number % 10 == 9:
                    answer = client.post("/v1/snapshots/rollback")
                else:
                    answer = client.post(f"/v1/snapshots/{versions[number % 2]}/activate")
                assert answer.status_code == 200, answer.text
            metrics = client.get("/metrics").text
        counted = next(line for line in metrics.splitlines() if line.startswith("hfh_activations_total"))
        assert float(counted.split()[-1]) >= 120  # every worker counts its own
        assert not watcher.wrong
        assert watcher.answered > 100
        assert watcher.versions == set(versions)


def test_an_activation_reaches_every_worker_and_a_pin_does_at_once(tmp_path) -> None:
    old, new = write(tmp_path / "a.hfh", 1, age_s=100), write(tmp_path / "b.hfh", 2)
    rows = references(tmp_path)

    def version(pinned: dict[str, str]) -> str:
        with httpx.Client(base_url=url, headers=pinned) as client:  # a connection of its own: any worker
            found = client.post("/v1/tables/users/lookup", json={"ids": list(range(400))}).json()
        assert np.array_equal(np.array(found["embeddings"], np.float32), rows[found["version"]])
        named: str = found["version"]
        return named

    with serving(str(tmp_path), "--workers", "2") as (url, _):
        assert {version({}) for _ in range(20)} == {new}
        third = write(tmp_path / "c.hfh", 3)
        rows |= references(tmp_path)
        for expected in (old, third, new):
            assert httpx.post(f"{url}/v1/snapshots/{expected}/activate", timeout=30).status_code == 200
            assert {version({"x-hfh-version": expected}) for _ in range(20)} == {expected}
            until(lambda expected=expected: {version({}) for _ in range(20)} == {expected}, "every worker follows")


def test_a_damaged_snapshot_in_a_watched_folder_disturbs_nobody(tmp_path) -> None:
    now = write(tmp_path / "a.hfh", 1)
    rows = references(tmp_path)
    with (
        serving(str(tmp_path), "--workers", "2", "--watch-s", "0.1") as (url, _),
        Watcher([url] * 2, rows, {}) as watcher,
    ):
        write(tmp_path / "b.part", 2)
        whole = (tmp_path / "b.part").read_bytes()
        (tmp_path / "b.part").write_bytes(whole[:-2] + b"xx")
        (tmp_path / "b.part").rename(tmp_path / "b.hfh")

        def refused() -> bool:
            found = httpx.get(f"{url}/v1/snapshots").json()["snapshots"]
            return [each["state"] for each in found if each["file"] == "b.hfh"] == ["refused"]

        until(refused, "the damaged snapshot is refused")
        time.sleep(0.3)
    assert not watcher.wrong
    assert watcher.versions == {now}


@contextmanager
def replicas(folder: Path, *arguments: str) -> Iterator[tuple[RedisServer, str, str, dict[str, np.ndarray]]]:
    """Redis and two services with the same snapshot."""
    snapshots = folder / "snapshots"
    snapshots.mkdir()
    write(snapshots / "a.hfh", 1)
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(folder))
        options = (str(snapshots), "--redis-url", redis.url, "--redis-timeout-s", "0.5", *arguments)
        one, _ = stack.enter_context(serving(*options))
        other, _ = stack.enter_context(serving(*options))
        yield redis, one, other, references(snapshots)


def test_a_killed_paused_and_flushed_redis_costs_no_lookup_and_recovers_by_itself(tmp_path) -> None:
    with replicas(tmp_path) as (redis, one, other, rows):
        written: dict[int, list[float]] = {number: [] for number in range(400)}

        def write_row(url: str, id_: int, value: float) -> int:
            written[id_].append(value)  # allowed from before it is sent
            return put(url, id_, value)

        with Watcher([one, other], rows, written) as watcher:
            assert write_row(one, 5, 1.5) == 200
            assert until(lambda: value_of(other, 5) == 1.5, "the other replica has it", 5) < 1.0

            redis.kill()
            assert write_row(one, 6, 2.5) == 424
            until(lambda: overlay_of(one)["stale"] and overlay_of(other)["stale"], "both know")
            assert (value_of(one, 5), value_of(other, 5)) == (1.5, 1.5)
            assert httpx.get(f"{one}/readyz").status_code == 200
            assert "hfh_overlay_stale 1.0" in httpx.get(f"{one}/metrics").text
            redis.start()  # with nothing in it
            until(lambda: not overlay_of(one)["stale"] and not overlay_of(other)["stale"], "both recovered")
            assert write_row(other, 7, 3.5) == 200
            until(lambda: value_of(one, 7) == 3.5, "writes reach the other again")
            assert (value_of(one, 5), value_of(other, 5)) == (1.5, 1.5)

            redis.pause()
            began = time.monotonic()
            assert write_row(one, 8, 4.5) == 424
            assert time.monotonic() - began < 3
            until(lambda: overlay_of(one)["stale"] and overlay_of(other)["stale"], "both know")
            assert (value_of(one, 5), value_of(other, 7)) == (1.5, 3.5)
            redis.resume()
            until(lambda: not overlay_of(one)["stale"] and not overlay_of(other)["stale"], "both recovered")

            redis.client().flushall()
            assert write_row(one, 9, 5.5) == 200
            until(lambda: value_of(other, 9) == 5.5, "a write after the flush arrives")
            until(lambda: redis.client().hlen("{hfh:overlay}:rows:users") >= 3, "the rows are back in Redis")
            time.sleep(0.7)
            for url in (one, other):
                assert [value_of(url, id_) for id_ in (5, 7, 9)] == [1.5, 3.5, 5.5]
        assert not watcher.wrong
        assert watcher.stale > 0
        assert watcher.slowest_s < 5


def test_a_service_that_starts_without_redis_finds_it_later(tmp_path) -> None:
    write(tmp_path / "a.hfh", 1)
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as redis:
        redis.kill()
        with (
            serving(str(tmp_path), "--redis-url", redis.url) as (url, _),
            Watcher([url], references(tmp_path), {5: [1.5]}) as watcher,
        ):
            assert overlay_of(url) == {"store": "redis", "shared": True, "stale": True}
            assert put(url, 5, 1.5) == 424
            redis.start()
            until(lambda: not overlay_of(url)["stale"], "it found Redis")
            assert put(url, 5, 1.5) == 200
            assert value_of(url, 5) == 1.5
        assert not watcher.wrong


def test_a_client_pause_of_redis_hangs_no_lookup(tmp_path) -> None:
    with replicas(tmp_path) as (redis, one, _, rows), Watcher([one], rows, {5: [1.5], 6: [2.5]}) as watcher:
        assert put(one, 5, 1.5) == 200
        redis.client().client_pause(1_500)
        began = time.monotonic()
        assert put(one, 6, 2.5) == 424
        assert value_of(one, 5) == 1.5
        assert time.monotonic() - began < 1.4  # while it is still paused
        until(lambda: not overlay_of(one)["stale"], "it recovered")
        assert put(one, 6, 2.5) == 200
    assert not watcher.wrong


def workers_of(pid: int) -> set[int]:
    """The processes of uvicorn's workers, by their command line."""
    found = set()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            found.add(int(child))
    return found


def test_a_killed_worker_comes_back_with_the_overlay_and_the_active_version(tmp_path) -> None:
    snapshots = tmp_path / "snapshots"
    snapshots.mkdir()
    old = write(snapshots / "a.hfh", 1, age_s=100)
    new = write(snapshots / "b.hfh", 2)
    rows = references(snapshots)
    with (
        redis_server(tmp_path) as redis,
        serving(str(snapshots), "--redis-url", redis.url, "--workers", "2") as (url, process),
    ):
        until(lambda: len(workers_of(process.pid)) == 2, "two workers")
        before = workers_of(process.pid)
        assert httpx.get(f"{url}/readyz", timeout=10).status_code == 200
        os.kill(min(before), signal.SIGKILL)
        until(lambda: len(workers_of(process.pid) - before) == 1, "a new worker")
        assert httpx.post(f"{url}/v1/snapshots/{old}/activate", timeout=30).status_code == 200
        assert put(url, 5, 1.5) == 200
        os.kill(max(before), signal.SIGKILL)
        until(lambda: len(workers_of(process.pid) - before) == 2, "two new workers")
        answers = 0

        def answered() -> bool:
            nonlocal answers
            try:
                answer = httpx.post(f"{url}/v1/tables/users/lookup", json={"ids": [4, 5]}, timeout=10)
            except httpx.TransportError:
                return False  # it was accepted by a worker that was killed
            found = answer.json()
            assert found["version"] == old
            expected = rows[old][[4, 5]].copy()
            expected[1] = 1.5
            assert np.array_equal(np.array(found["embeddings"], np.float32), expected)
            answers += 1
            return answers == 30

        until(answered, "thirty right answers")
        metrics = httpx.get(f"{url}/metrics", timeout=10).text
        assert f'version="{new}"}} 1.0' not in metrics  # what the killed ones served
        assert f'version="{old}"}} 1.0' in metrics
