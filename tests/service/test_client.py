import asyncio
import socket

import numpy as np
import pytest

import hfh_embed
from service.client import AsyncClient, Client, ServiceError
from tests.service.conftest import serving


@pytest.fixture(scope="module")
def url(snapshot_path):
    with serving(str(snapshot_path), "--max-ids", "1000") as (url, _):
        yield url


@pytest.fixture(scope="module")
def users(snapshot_path):
    return hfh_embed.open(snapshot_path)["users"]


def test_every_method_gives_the_tables_own_rows(url: str, users) -> None:
    ids, offsets, weights = [3, 1, 2], [0, 2], [1.0, 0.5, -1]
    with Client(url + "/") as client:
        assert np.array_equal(client.lookup("users", ids), users.lookup(ids))
        assert np.array_equal(client.lookup("users", ids, dtype=np.float16), users.lookup(ids, dtype=np.float16))
        assert np.array_equal(client.lookup("users", keys=["key 9"]), users.lookup([9]))
        assert np.array_equal(client.bag("users", ids, offsets, mode="max"), users.bag(ids, offsets, mode="max"))
        weighted = client.bag("users", ids, offsets, mode="sum", per_sample_weights=weights)
        assert np.array_equal(weighted, users.bag(ids, offsets, mode="sum", per_sample_weights=weights))
        several = client.lookup_several({"users": {"ids": np.array(ids)}, "goods": {"ids": ids, "offsets": [0]}})
        assert np.array_equal(several["users"], users.lookup(ids))
        assert several["goods"].shape == (1, 40)
        assert client.lookup("users", []).shape == (0, 40)
        assert [table["name"] for table in client.tables()] == ["users", "goods"]
        rows = client.lookup("users", ids)
        rows += 1  # the caller's own


def test_the_async_client_gives_the_same(url: str, users) -> None:
    async def ask() -> None:
        async with AsyncClient(url) as client:
            many = await asyncio.gather(*(client.lookup("users", [number, 7]) for number in range(100)))
            assert all(np.array_equal(rows, users.lookup([number, 7])) for number, rows in enumerate(many))
            assert np.array_equal(await client.bag("users", [1, 2], [0]), users.bag([1, 2], [0]))
            assert (await client.lookup_several({"users": {"ids": [1]}}))["users"].shape == (1, 40)
            assert len(await client.tables()) == 2
            with pytest.raises(ServiceError, match="no table is named 'nobody'"):
                await client.lookup("nobody", [1])

    asyncio.run(ask())


def test_the_servers_sentence_reaches_the_caller(url: str) -> None:
    with Client(url) as client:
        with pytest.raises(ServiceError, match="id 5000 is outside table 'users'") as caught:
            client.lookup("users", [5000])
        assert (caught.value.status, caught.value.type) == (422, "invalid_value")
        with pytest.raises(ServiceError, match="at most 1,000"):
            client.lookup("users", np.zeros(1001, dtype=int))
        with pytest.raises(ServiceError, match="is not in the vocabulary"):
            client.lookup("users", keys=["nobody"])


@pytest.mark.parametrize("ids", [[1.5], ["a"], [[1, 2]], [True]])
def test_wrong_ids_are_refused_before_they_are_sent(ids) -> None:
    with pytest.raises(ValueError, match="1-D array of integers"):
        Client("http://127.0.0.1:1").lookup("users", ids)


def test_a_server_that_is_not_there_is_told() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"

    async def ask() -> None:
        async with AsyncClient(url, retries=1) as client:
            with pytest.raises(ServiceError, match="did not answer"):
                await client.lookup("users", [1])

    asyncio.run(ask())
    with Client(url, retries=0) as client, pytest.raises(ServiceError, match="did not answer") as caught:
        client.lookup("users", [1])
    assert (caught.value.status, caught.value.type) == (0, "connection")
