"""The search route: what it finds, its bounds, and what it refuses."""

import asyncio
import threading
import urllib.request
from collections.abc import Callable

import msgpack
import numpy as np
import pytest
from starlette.testclient import TestClient
from threadpoolctl import threadpool_info, threadpool_limits

import hfh_embed
from service.app import create_app
from service.errors import ApiError
from service.searcher import Searcher
from service.settings import Settings
from service.state import State
from tests.builders import N
from tests.service.conftest import serving

MSGPACK = "application/msgpack"
SEARCH = "/v1/tables/users/search"


@pytest.fixture(scope="module")
def users(snapshot_path):
    return hfh_embed.open(snapshot_path)["users"]


@pytest.mark.parametrize("metric", ["dot", "cosine", "l2"])
def test_vectors_find_what_the_library_finds(client, users, metric: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    ids, scores = users.search(vectors, 7, metric=metric)
    answer = client.post(SEARCH, json={"vectors": vectors.tolist(), "k": 7, "metric": metric})
    document = answer.json()
    assert document["ids"] == ids.tolist()
    assert np.array_equal(np.array(document["scores"], dtype=np.float32), scores)
    assert document["keys"] == [[f"key {id_}" for id_ in row] for row in ids.tolist()]
    assert (document["table"], document["metric"]) == ("users", metric)
    assert document["version"] == answer.headers["x-hfh-version"]


def test_ids_and_keys_find_their_neighbours(client, users) -> None:
    wanted = users.search(users.lookup([3, 4]), 5, metric="cosine")[0]
    for asked in ({"ids": [3, 4]}, {"keys": ["key 3", "key 4"]}):
        found = client.post(SEARCH, json=asked | {"k": 5, "metric": "cosine"}).json()["ids"]
        assert found == wanted.tolist()
        assert found[0][0] == 3
        others = client.post(SEARCH, json=asked | {"k": 4, "metric": "cosine", "exclude_self": True}).json()
        assert others["ids"] == wanted[:, 1:].tolist()
        assert np.shape(others["scores"]) == (2, 4)
    everything = client.post(SEARCH, json={"ids": [3], "k": 1_000, "exclude_self": True}).json()["ids"][0]
    assert len(everything) == 1_000
    assert 3 not in everything


def test_msgpack_with_bytes(client, users) -> None:
    vectors = users.lookup([5, 6])
    body = msgpack.packb({"vectors": vectors.astype("<f4").tobytes(), "k": 2})
    found = msgpack.unpackb(client.post(SEARCH, content=body, headers={"content-type": MSGPACK}).content)
    assert found["ids"]["shape"] == [2, 2]
    assert found["ids"]["data"] == users.search(vectors, 2)[0].tobytes()


def test_a_padding_id_is_never_found_and_no_query_finds_nothing(client) -> None:
    goods = "/v1/tables/goods/search"
    document = client.post(goods, json={"ids": [7], "k": 1_000}).json()
    assert 7 not in document["ids"][0]
    assert "keys" not in document
    assert client.post(SEARCH, json={"ids": []}).json()["ids"] == []
    assert client.post(SEARCH, json={"vectors": []}).json()["ids"] == []


@pytest.mark.parametrize(
    ("document", "status", "message"),
    [
        ({}, 422, "one of vectors, ids and keys"),
        ({"ids": [1], "keys": ["a"]}, 422, "one of vectors, ids and keys"),
        ({"ids": [1], "k": 0}, 422, "k is 0; give an integer from 1 to 1,000"),
        ({"ids": [1], "k": 1001}, 422, "k is 1001"),
        ({"ids": [1], "k": None}, 422, "k is None"),
        ({"ids": [1], "metric": "hamming"}, 422, "allowed are dot, cosine, l2"),
        ({"ids": [1], "metric": []}, 422, "allowed are dot, cosine, l2"),
        ({"ids": [N]}, 422, "is outside table"),
        ({"ids": ["1"]}, 422, "give integers"),
        ({"keys": ["nobody"]}, 422, "not in the vocabulary"),
        ({"keys": "key 1"}, 422, "list of strings"),
        ({"vectors": [[1, 2]]}, 422, "a vector has 2 numbers; the table's rows have 40"),
        ({"vectors": [1, 2]}, 422, "must be a list of numbers"),
        ({"vectors": {}}, 422, "list of lists"),
        ({"vectors": [[1e300] * 40]}, 422, "NaN or infinity"),
        ({"vectors": [[1] * 40], "exclude_self": True}, 422, "goes with ids or keys"),
        ({"ids": [1], "exclude_self": 1}, 422, "true or false"),
        ({"ids": [1], "limit": 3}, 422, "'limit' is not known"),
        ({"ids": [1] * 65}, 413, "65 queries in one search; at most 64"),
        ({"keys": ["key 1"] * 65}, 413, "at most 64"),
        ({"vectors": [[0] * 40] * 65}, 413, "at most 64"),
    ],
)
def test_what_cannot_be_searched_is_told(client, document, status: int, message: str) -> None:
    answer = client.post(SEARCH, json=document)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_bytes_alone_are_no_search(client) -> None:
    assert client.post(SEARCH, content=b"", headers={"content-type": "application/octet-stream"}).status_code == 415
    assert client.post(SEARCH, json={"ids": [1]}, headers={"accept": "application/octet-stream"}).status_code == 415
    assert client.post("/v1/tables/nobody/search", json={"ids": [1]}).status_code == 404


class _SlowTable:
    """A table so long that its search does not end by itself, and what the searcher asks of it."""

    def __init__(self, table: hfh_embed.Table) -> None:
        self.table, self.vocabulary = self, None
        self.spec, self.num_embeddings = table.spec, 2**50
        self.tiles = 0

    def fill(self, ids: np.ndarray, out: np.ndarray) -> None:
        self.tiles += 1
        out[:] = 0


async def _wait_for(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["client", "cancel"])
def test_an_abandoned_search_ends_and_makes_room(users, how: str) -> None:
    async def scenario() -> None:
        searcher, slow, left = Searcher(1), _SlowTable(users), asyncio.Event()
        query = np.ones((1, 40), dtype=np.float32)
        running = asyncio.create_task(searcher.search(slow, query, 3, "dot", None, left.wait))  # type: ignore[arg-type]
        await _wait_for(lambda: slow.tiles)
        with pytest.raises(ApiError, match="1 searches are running") as full:
            await searcher.search(slow, query, 3, "dot", None, left.wait)  # type: ignore[arg-type]
        assert (full.value.status, full.value.headers) == (429, {"retry-after": "1"})
        if how == "client":
            left.set()
            with pytest.raises(ApiError, match="went away"):
                await running
        else:
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        await _wait_for(lambda: not searcher.now)

    asyncio.run(scenario())


def test_matrix_products_of_the_service_stay_in_one_thread() -> None:
    with threadpool_limits(2, user_api="blas"):
        Searcher(1)
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}


def test_a_server_that_stops_ends_its_searches(snapshot_path) -> None:
    with serving(str(snapshot_path), "--drain-s", "1") as (url, process):
        request = urllib.request.Request(
            f"{url}{SEARCH}", b'{"ids": [1], "k": 1}', {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_other_requests_are_answered_during_a_search(snapshot_path, users) -> None:
    state = State.load(Settings(paths=(snapshot_path,)))
    with TestClient(create_app(state)) as client:
        slow, stop = _SlowTable(users), threading.Event()

        async def hold() -> None:
            gone = asyncio.create_task(asyncio.to_thread(stop.wait, 20))
            with pytest.raises(ApiError, match="went away"):
                await state.searcher.search(slow, np.ones((1, 40), np.float32), 1, "dot", None, lambda: gone)  # type: ignore[arg-type]

        assert client.portal is not None
        held = client.portal.start_task_soon(hold)
        client.portal.call(_wait_for, lambda: slow.tiles)
        assert client.post("/v1/tables/users/lookup", json={"ids": [1]}).status_code == 200
        assert client.post(SEARCH, json={"ids": [1]}).status_code == 429
        stop.set()
        held.result(timeout=20)
        client.portal.call(_wait_for, lambda: not state.searcher.now)
        assert client.post(SEARCH, json={"ids": [1]}).status_code == 200
