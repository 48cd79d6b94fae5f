"""One row by GET, and what a cache may do with it."""

import msgpack
import numpy as np
import pytest

import hfh_embed
from tests.builders import N

BINARY = "application/octet-stream"


@pytest.fixture(scope="module")
def snapshot(snapshot_path):
    return hfh_embed.open(snapshot_path)


def test_a_row_in_every_form(client, snapshot) -> None:
    row = snapshot["users"].lookup(3)
    url = "/v1/tables/users/rows/3"
    document = client.get(url).json()
    assert (document["table"], document["version"], document["id"]) == ("users", snapshot.version, 3)
    assert np.array_equal(np.array(document["embedding"], dtype=np.float32), row)
    answer = client.get(url, headers={"accept": BINARY})
    assert answer.content == row.tobytes()
    assert (answer.headers["x-hfh-shape"], answer.headers["x-hfh-dtype"]) == ("40", "float32")
    half = client.get(url, headers={"accept": f"{BINARY};dtype=float16"})
    assert half.content == snapshot["users"].lookup(3, dtype=np.float16).tobytes()
    packed = msgpack.unpackb(client.get(url, headers={"accept": "application/msgpack"}).content)
    assert packed["embedding"]["data"] == row.tobytes()


def test_a_cache_may_keep_it_and_ask_again(client, snapshot) -> None:
    url = "/v1/tables/users/rows/3"
    answer = client.get(url)
    tag = answer.headers["etag"]
    assert tag.startswith(f'"{snapshot.version}-')
    assert (answer.headers["cache-control"], answer.headers["vary"]) == ("no-cache", "accept")
    for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get(url, headers={"if-none-match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    others = [
        client.get("/v1/tables/users/rows/4").headers["etag"],
        client.get(url, headers={"accept": BINARY}).headers["etag"],
        client.get(url, headers={"accept": f"{BINARY};dtype=float16"}).headers["etag"],
    ]
    assert len({tag, *others}) == 4
    for other in others:
        assert client.get(url, headers={"if-none-match": other}).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "type_"),
    [
        (f"users/rows/{N}", 404, "id_not_found"),
        ("nobody/rows/1", 404, "table_not_found"),
        ("users/rows/-1", 422, "invalid_value"),
        ("users/rows/1.5", 422, "invalid_value"),
        ("users/rows/٣", 422, "invalid_value"),
        (f"users/rows/{2**63}", 422, "invalid_value"),
        (f"users/rows/{'9' * 5000}", 422, "invalid_value"),
    ],
)
def test_what_is_not_there(client, path: str, status: int, type_: str) -> None:
    answer = client.get(f"/v1/tables/{path}")
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, type_)


def test_the_policy_for_unknown_ids_holds(client) -> None:
    assert client.get(f"/v1/tables/goods/rows/{2**63 - 1}").json()["embedding"] == [0.0] * 40
