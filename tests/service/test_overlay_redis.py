"""Replicas that share rows through a real Redis: whatever happens to it, they come to have the same rows."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from hfh_embed.errors import InputError
from hfh_embed.redis_rows import Keys, parse_url, read_fresh
from service import overlay_redis
from service.errors import ApiError
from service.overlay_redis import RedisOverlay
from tests.service.redis_server import RedisServer, free_port, redis_server
from tests.service.waiting import until

D = 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@asynccontextmanager
async def replica(url: str, *, rows: int = 10_000, nbytes: int = 10**8, timeout_s: float = 1.0):
    overlay = RedisOverlay(parse_url(url), "hfh", rows, nbytes, timeout_s)
    overlay.fresh("users")
    await overlay.start()
    try:
        yield overlay
    finally:
        await overlay.close()


def array(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int64)


def rows(*values: float, dim: int = D) -> np.ndarray:
    return np.repeat(np.array(values, dtype=np.float32)[:, None], dim, axis=1)


def held(overlay: RedisOverlay) -> dict[int, float]:
    ids, _, found = overlay.fresh("users").contents()
    return dict(zip(ids.tolist(), [row[0] for row in found.tolist()], strict=True))


async def becomes(expected: object, found: Callable[[], object], most_s: float = 10.0) -> None:
    for _ in range(int(most_s / 0.01)):
        if found() == expected:
            return
        await asyncio.sleep(0.01)
    assert found() == expected


async def fails(call: Awaitable[object], status: int, type_: str) -> None:
    with pytest.raises(ApiError) as caught:
        await call
    assert (caught.value.status, caught.value.type) == (status, type_)


@contextmanager
def reached_by(kind: str, folder: Path) -> Iterator[str]:
    """A URL of each kind that leads to a real server of that kind."""
    if kind == "single":
        with redis_server(folder) as server:
            yield server.url
    elif kind == "password":
        with redis_server(folder, "--user", "writer", "on", ">p%w:/", "~*", "&*", "+@all") as server:
            yield f"redis://writer:p%25w%3A%2F@127.0.0.1:{server.port}/3"
    elif kind == "cluster":
        with redis_server(folder, "--cluster-enabled", "yes") as server:
            server.client().execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)
            until(lambda: server.client().cluster("INFO")["cluster_state"] == "ok", "the cluster is up")
            yield f"redis+cluster://127.0.0.1:{server.port}"
    elif kind == "sentinel":
        with redis_server(folder) as server:
            port, configuration = free_port(), folder / "sentinel.conf"
            configuration.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {server.port} 1\n")
            program = shutil.which("redis-server")
            assert program is not None
            with subprocess.Popen([program, configuration, "--sentinel"], stdout=subprocess.DEVNULL) as sentinel:
                try:
                    yield f"redis+sentinel://127.0.0.1:{port}/main"
                finally:
                    sentinel.terminate()
    else:
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *name]
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        port = free_port()
        tls = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
        with redis_server(folder, *tls, "--tls-auth-clients", "no", "--tls-ca-cert-file", str(certificate)):
            yield f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"


@pytest.mark.parametrize("kind", ["single", "password", "sentinel", "cluster", "tls"])
def test_every_kind_of_redis_carries_rows_between_replicas(kind: str, tmp_path) -> None:
    async def check(url: str) -> None:
        async with replica(url) as one, replica(url) as other:
            for _ in range(500):  # a sentinel needs a moment to find its master
                if not one.stale and not other.stale:
                    break
                await asyncio.sleep(0.02)
            await one.put("users", array(1, 2, 2**63 - 1), rows(10, 20, 30))
            assert held(one) == {1: 10, 2: 20, 2**63 - 1: 30}
            await becomes(held(one), lambda: held(other))
            assert await other.drop("users", array(2, 77)) == 1
            await becomes({1: 10, 2**63 - 1: 30}, lambda: held(one))
            found = await asyncio.to_thread(read_fresh, url, "users")
            assert found.ids.tolist() == [1, 2**63 - 1]
            assert found.rows.tolist() == rows(10, 30).tolist()
            assert await one.drop("users") == 2
            await becomes({}, lambda: held(other))

    with reached_by(kind, tmp_path) as url:
        asyncio.run(check(url))


def test_a_replica_that_comes_later_or_missed_messages_catches_up(server, monkeypatch) -> None:
    monkeypatch.setattr(overlay_redis, "REMOVED_IDS", 5)

    async def check() -> None:
        async with replica(server.url) as one:
            await one.put("users", np.arange(2_500), rows(*np.arange(2_500)))
            async with replica(server.url) as late:
                assert held(late) == held(one)
            for number in range(20):  # more removals than are remembered
                await one.drop("users", array(number))
            await one.put("users", array(5, 9_000), rows(-1, -2))
            async with replica(server.url) as late:
                assert held(late) == held(one)
                assert (len(held(one)), held(one)[5]) == (2_500 - 20 + 2, -1)

    asyncio.run(check())


def test_a_paused_replica_catches_up_over_forgotten_removals(server, monkeypatch) -> None:
    monkeypatch.setattr(overlay_redis, "REMOVED_IDS", 5)

    async def check() -> None:
        async with replica(server.url) as one, replica(server.url) as other:
            await one.put("users", np.arange(100), rows(*np.arange(100)))
            await becomes(held(one), lambda: held(other))
            async with other._lock:  # it hears nothing for a while
                for number in range(50):
                    await one.drop("users", array(number))
                await one.put("users", array(70), rows(-7))
            await becomes(held(one), lambda: held(other))
            assert len(held(other)) == 50

    asyncio.run(check())


def test_a_flushed_redis_gets_its_rows_back_and_the_later_write_wins(server) -> None:
    async def check() -> None:
        async with replica(server.url) as one, replica(server.url) as other:
            await one.put("users", array(1, 2, 3), rows(1, 2, 3))
            await one.drop("users", array(3))
            await becomes({1: 1, 2: 2}, lambda: held(other))
            server.client().flushall()
            await other.put("users", array(2, 4), rows(-2, 4))  # before anyone noticed
            expected = {1: 1, 2: -2, 4: 4}
            await becomes(expected, lambda: held(one))
            await becomes(expected, lambda: held(other))
            await becomes(3, lambda: server.client().hlen(Keys().rows("users")))
            await asyncio.sleep(1.2)  # it stays so
            assert held(one) == held(other) == expected
            async with replica(server.url) as late:
                assert held(late) == expected
            assert server.client().hget(Keys().meta, "rows") == b"3"
            assert server.client().hget(Keys().meta, "bytes") == str(3 * (8 + 4 * D)).encode()

    asyncio.run(check())


def test_a_redis_that_comes_back_with_older_data_is_brought_up_to_date(tmp_path) -> None:
    async def check(server: RedisServer) -> None:
        async with replica(server.url) as one:
            await one.put("users", array(1, 2), rows(1, 2))
            server.client().save()
            await one.put("users", array(2, 3), rows(-2, 3))
            server.kill()
            await becomes(True, lambda: one.stale)
            assert held(one) == {1: 1, 2: -2, 3: 3}
            server.start()
            await becomes(False, lambda: one.stale)
            async with replica(server.url) as late:
                await becomes({1: 1, 2: -2, 3: 3}, lambda: held(late))
            assert held(one) == {1: 1, 2: -2, 3: 3}

    with redis_server(tmp_path, "--save", "900 1") as server:
        asyncio.run(check(server))


def test_writes_fail_with_424_while_it_is_gone_and_need_nobody_afterwards(server) -> None:
    async def check() -> None:
        async with replica(server.url, timeout_s=0.5) as one:
            await one.put("users", array(1), rows(1))
            server.pause()
            began = asyncio.get_running_loop().time()
            await fails(one.put("users", array(2), rows(2)), 424, "redis_gone")
            assert asyncio.get_running_loop().time() - began < 1.5
            assert one.stale
            assert held(one) == {1: 1}
            await asyncio.sleep(0.7)
            await fails(one.drop("users"), 424, "redis_gone")
            server.resume()
            await becomes(False, lambda: one.stale)
            await one.put("users", array(3), rows(3))
            assert one.age_s < 2
            server.kill()
            await fails(one.put("users", array(4), rows(4)), 424, "redis_gone")
            server.start()
            await becomes(False, lambda: one.stale)
            expected = held(one)
            assert expected.keys() >= {1, 3}  # 2 and 4 may or may not have been stored
            async with replica(server.url) as late:
                await becomes(expected, lambda: held(late))

    asyncio.run(check())


def test_a_redis_that_refuses_writes_is_told_and_is_not_stale(server) -> None:
    async def check() -> None:
        async with replica(server.url) as one:
            await one.put("users", array(1), rows(1))
            server.client().config_set("maxmemory", "1")
            await fails(one.put("users", array(2), rows(2)), 424, "redis_gone")
            assert not one.stale
            server.client().config_set("maxmemory", "0")
            await one.put("users", array(2), rows(2))
            assert held(one) == {1: 1, 2: 2}

    asyncio.run(check())


def test_rows_and_bytes_are_bounded_over_all_replicas_and_tables(server) -> None:
    async def check() -> None:
        async with replica(server.url, rows=3) as one, replica(server.url, rows=3) as other:
            await one.put("users", array(1, 2), rows(1, 2))
            await other.put("goods", array(1), rows(1))
            await fails(one.put("users", array(2, 3), rows(5, 5)), 413, "overlay_full")
            await one.put("users", array(2), rows(6))  # what is there may change
            assert held(one) == {1: 1, 2: 6}
            await one.drop("users", array(1))
            await one.put("users", array(9), rows(9))
        async with replica(server.url, nbytes=4 * (8 + 4 * D) - 1) as small:
            await fails(small.put("users", array(7), rows(7)), 413, "overlay_full")

    asyncio.run(check())


def test_rows_of_another_length_replace_those_of_before_everywhere(server) -> None:
    async def check() -> None:
        async with replica(server.url) as one, replica(server.url) as other:
            await one.put("users", array(1, 2), rows(1, 2))
            await becomes({1: 1, 2: 2}, lambda: held(other))
            await one.put("users", array(2), rows(5, dim=7))
            assert held(one) == {2: 5}
            await becomes({2: 5}, lambda: held(other))
            assert other.fresh("users").dim == 7
            assert server.client().hget(Keys().meta, "bytes") == str(8 + 4 * 7).encode()

    asyncio.run(check())


def test_random_writes_removals_and_losses_leave_all_replicas_equal(server) -> None:
    generator = np.random.default_rng(1)

    async def check() -> None:
        async with replica(server.url) as one, replica(server.url) as other:
            both, expected = (one, other), {}
            for number in range(1, 120):
                writer = both[generator.integers(2)]
                ids = generator.choice(30, generator.integers(1, 6), replace=False).astype(np.int64)
                event = generator.integers(20)
                if event == 0:
                    for each in both:  # a removal that a replica has not heard of may be undone by a loss
                        await becomes(expected, lambda each=each: held(each))
                    server.client().flushall()
                elif event == 1:
                    await writer.drop("users")
                    expected = {}
                elif event < 8:
                    await writer.drop("users", ids)
                    expected = {id_: value for id_, value in expected.items() if id_ not in ids}
                else:
                    await writer.put("users", ids, rows(*[number] * len(ids)))
                    expected |= dict.fromkeys(ids.tolist(), float(number))
                if generator.integers(3) == 0:
                    for each in both:
                        await becomes(expected, lambda each=each: held(each))

    asyncio.run(check())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:6379", "no scheme"),
        ("http://:s3cret@x", "http"),
        ("redis://", "host"),
        ("redis://:s3cret@a:port", "host"),
        ("redis://:s3cret@a:99999", "host"),
        ("redis://:s3cret@a,b", "one host"),
        ("redis://:s3cret@a/x", "database"),
        ("redis://:s3cret@a/1/2", "database"),
        ("redis://:s3cret@a/1?colour=red", "colour"),
        ("redis://:s3cret@a?ssl_ca_certs=x", "rediss"),
        ("redis+sentinel://:s3cret@a,b:1", "name"),
        ("redis+sentinel://:s3cret@a/name/x", "database"),
        ("redis+cluster://:s3cret@a/1", "no database"),
    ],
)
def test_a_wrong_url_is_told_without_its_password(url: str, message: str, capsys) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_url(url)
    assert "s3cret" not in str(caught.value)


def test_a_right_url_says_where_it_leads_without_its_password() -> None:
    target = parse_url("rediss+sentinel://me:s3cret@a,[::1]:7/main/2")
    assert (target.kind, target.hosts, target.service, target.db) == ("sentinel", (("a", 26379), ("::1", 7)), "main", 2)
    assert (target.username, target.password, target.tls) == ("me", "s3cret", True)
    assert "s3cret" not in f"{target} {target!r}"


def test_reading_from_a_redis_that_is_not_there_is_told() -> None:
    with pytest.raises(InputError, match="does not answer"):
        read_fresh(f"redis://127.0.0.1:{free_port()}", "users", timeout_s=1)
