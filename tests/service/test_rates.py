import json
import shutil
import subprocess
import time

import pytest
from limits import parse
from starlette.testclient import TestClient

from hfh_embed.errors import HFHError
from service.app import create_app
from service.auth import Key, Keyring, new_key
from service.calls import Call
from service.errors import ApiError
from service.rates import Rates
from service.settings import Settings
from service.state import State
from tests.service.conftest import free_port, serving

LOOKUP = "/v1/tables/users/lookup"


def _ask(client: TestClient, count: int, key: str) -> int:
    return client.post(LOOKUP, json={"ids": list(range(count))}, headers={"x-api-key": key}).status_code


@pytest.fixture
def limited(tmp_path):
    """A keys file with one limited key and one that is not, and the two keys."""
    (slow, slow_line), (fast, fast_line) = new_key("slow", "read", "100/minute"), new_key("fast", "read")
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys:\n  - {slow_line}\n  - {fast_line}\n")
    return path, slow, fast


def test_a_key_that_asks_for_too_many_ids_waits(snapshot_path, limited) -> None:
    path, slow, fast = limited
    with TestClient(create_app(State.load(Settings(paths=(snapshot_path,), keys_file=path)))) as client:
        assert [_ask(client, 40, slow) for _ in range(3)] == [200, 200, 429]
        assert _ask(client, 20, slow) == 200, "what was refused was not counted"
        answer = client.post(LOOKUP, json={"ids": [1, 2]}, headers={"x-api-key": slow})
        assert answer.json()["error"]["type"] == "rate_limited"
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert "key 'slow' may ask for 100 per 1 minute" in answer.json()["error"]["message"]
        assert _ask(client, 0, slow) == 200
        assert [_ask(client, 400, fast) for _ in range(3)] == [200] * 3
        bags = {"tables": {"users": {"ids": [1, 2]}, "goods": {"ids": [3], "offsets": [0]}}}
        assert client.post("/v1/lookup", json=bags, headers={"x-api-key": slow}).status_code == 429
        assert (
            'hfh_rejected_total{reason="rate_limited"} 3.0' in client.get("/metrics", headers={"x-api-key": fast}).text
        )


def test_one_request_of_more_than_the_whole_rate_is_told_to_be_split(snapshot_path, limited) -> None:
    path, slow, _ = limited
    with TestClient(create_app(State.load(Settings(paths=(snapshot_path,), keys_file=path)))) as client:
        answer = client.post(LOOKUP, json={"ids": list(range(101))}, headers={"x-api-key": slow})
        assert answer.status_code == 413
        assert "so split it" in answer.json()["error"]["message"]
        assert _ask(client, 100, slow) == 200


@pytest.mark.parametrize("url", ["memcached://x", "nonsense", "redis+unix:///x"])
def test_an_unusable_url_is_told(url: str) -> None:
    with pytest.raises(HFHError, match="rate_limit_url has the scheme"):
        Rates(url)


@pytest.fixture
def redis():
    """A Redis of this test's own: its URL and a way to end it."""
    binary = shutil.which("redis-server")
    assert binary, "the tests need redis-server"
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ready to accept connections" in line:
                break
        try:
            yield f"redis://127.0.0.1:{port}", process
        finally:
            process.kill()
            process.wait()


def test_processes_that_share_a_redis_count_together(snapshot_path, limited, redis) -> None:
    path, slow, _ = limited
    url, process = redis
    flags = (str(snapshot_path), "--keys-file", str(path), "--rate-limit-url", url)
    with serving(*flags) as (one, _), serving(*flags) as (two, _):
        statuses = []
        for address in (one, two, one, two):
            statuses.append(_status(address, 40, slow))
        assert statuses == [200, 200, 429, 429]
        process.kill()
        process.wait()
        began = time.monotonic()
        assert _status(one, 40, slow) == 200, "without Redis it counts for itself"
        assert _status(one, 40, slow) == 200
        assert _status(one, 40, slow) == 429
        assert time.monotonic() - began < 20, "it does not hang"


def _status(address: str, count: int, key: str) -> int:
    import urllib3

    body = json.dumps({"ids": list(range(count))}).encode()
    headers = {"x-api-key": key, "content-type": "application/json"}
    return urllib3.request("POST", address + LOOKUP, body=body, headers=headers, retries=False).status


def test_a_redis_that_hangs_costs_a_quarter_of_a_second_once(redis) -> None:
    import asyncio
    import signal

    url, process = redis
    rates, rate = Rates(url), parse("100/minute")
    key = Key("feed", "read", b"", rate)

    async def spend() -> list[float]:
        times = []
        await rates.spend(key, rate, 1)
        process.send_signal(signal.SIGSTOP)
        for _ in range(3):
            began = time.monotonic()
            await rates.spend(key, rate, 1)
            times.append(time.monotonic() - began)
        return times

    times = asyncio.run(spend())
    process.send_signal(signal.SIGCONT)
    assert max(times[1:]) < times[0] < 20, times


def test_without_a_rate_nothing_is_counted() -> None:
    import asyncio

    call = Call(None)
    call.key, call.rates = Key("feed", "read", b""), Rates()
    asyncio.run(call.spend(10**9))
    assert not Keyring()
    with pytest.raises(ApiError):
        asyncio.run(Rates().spend(call.key, parse("5/second"), 6))
