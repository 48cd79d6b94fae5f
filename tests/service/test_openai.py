"""OpenAI's own client against a real server, and every refusal."""

import base64

import numpy as np
import pytest

import hfh_embed
from tests.builders import N
from tests.service.conftest import serving

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def api(snapshot_path):
    with (
        serving(str(snapshot_path), "--max-ids", "500") as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def snapshot(snapshot_path):
    return hfh_embed.open(snapshot_path)


def _rows(answer) -> np.ndarray:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data], dtype=np.float32)


@pytest.mark.parametrize("encoding", [None, "float"])  # without one the client asks for base64
@pytest.mark.parametrize(
    ("given", "ids"),
    [(5, [5]), ([5], [5]), ([1, 2, 0], [1, 2, 0]), ("key 7", [7]), (["key 7", "key 1002"], [7, 1002])],
)
def test_one_embedding_for_each_id_or_key(api, snapshot, given, ids: list[int], encoding) -> None:
    options = {"encoding_format": encoding} if encoding else {}
    answer = api.embeddings.create(model="users", input=given, **options)
    assert np.array_equal(_rows(answer), snapshot["users"].lookup(ids))
    assert answer.model == "users"
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (len(ids), len(ids))


def test_one_mean_for_each_list_of_ids(api, snapshot) -> None:
    answer = api.embeddings.create(model="users", input=[[1, 2, 3], [4]])
    assert np.array_equal(_rows(answer), snapshot["users"].bag([1, 2, 3, 4], [0, 3]))
    assert answer.usage.total_tokens == 4


def test_a_key_without_a_vocabulary_is_hashed(api, snapshot) -> None:
    goods = snapshot["goods"]
    answer = api.embeddings.create(model="goods", input="käse")
    assert np.array_equal(_rows(answer), goods.lookup(goods.ids_of(["käse"])))


def test_dimensions_must_be_those_of_the_table(api) -> None:
    assert len(api.embeddings.create(model="users", input=1, dimensions=40).data[0].embedding) == 40
    with pytest.raises(openai.UnprocessableEntityError, match="dimensions is 20; this model has 40"):
        api.embeddings.create(model="users", input=1, dimensions=20)


def test_models(api) -> None:
    assert {model.id for model in api.models.list()} == {"users", "goods"}
    model = api.models.retrieve("goods")
    assert (model.id, model.object, model.owned_by) == ("goods", "model", "hfh")
    assert model.created > 1_500_000_000
    with pytest.raises(openai.NotFoundError, match="no model is named 'nobody'"):
        api.models.retrieve("nobody")


def test_refusals_are_told_by_the_client(api) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        api.embeddings.create(model="nobody", input=1)
    assert (missing.value.code, missing.value.type) == ("model_not_found", "invalid_request_error")
    with pytest.raises(openai.UnprocessableEntityError, match="key 'nobody' is not in the vocabulary"):
        api.embeddings.create(model="users", input="nobody")
    with pytest.raises(openai.UnprocessableEntityError, match=f"id {N} is outside"):
        api.embeddings.create(model="users", input=N)
    with pytest.raises(openai.APIStatusError, match="at most 500") as caught:
        api.embeddings.create(model="users", input=list(range(501)))
    assert (caught.value.status_code, caught.value.code) == (413, "too_many_ids")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "model must be the name"),
        ({"model": None}, "model must be the name"),
        ({"input": []}, "not empty"),
        ({"input": None}, "not empty"),
        ({"input": {}}, "not empty"),
        ({"input": True}, "not empty"),
        ({"input": 1.5}, "not empty"),
        ({"input": [1, "a"]}, "give integers"),
        ({"input": [True]}, "give integers"),
        ({"input": ["a", 1]}, "mixes strings"),
        ({"input": [[]]}, "at least one id"),
        ({"input": [[1], 2]}, "mixes lists"),
        ({"input": [[1], ["a"]]}, "give integers"),
        ({"input": [[1]] * 501}, "at most 500"),
        ({"input": ["key 1"] * 501}, "at most 500"),
        ({"input": 2**70}, "a string, an integer"),
        ({"input": -1}, "negative"),
        ({"encoding_format": "hex"}, "allowed are float, base64"),
        ({"dimensions": True}, "dimensions is True"),
        ({"user": 7}, "user must be a string"),
        ({"size": 7}, "'size' is not supported"),
    ],
)
def test_wrong_requests_get_a_sentence(client, change, message: str) -> None:
    answer = client.post("/v1/embeddings", json={"model": "users", "input": 1} | change)
    assert answer.status_code in (413, 422)
    error = answer.json()["error"]
    assert message in error["message"]
    assert (error["type"], error["status"]) == ("invalid_request_error", answer.status_code)


def test_the_wire_forms(client, snapshot) -> None:
    row = snapshot["users"].lookup([3])[0]
    plain = client.post("/v1/embeddings", json={"model": "users", "input": 3, "user": None})
    assert plain.headers["x-hfh-version"] == snapshot.version
    assert np.array_equal(np.array(plain.json()["data"][0]["embedding"], dtype=np.float32), row)
    packed = client.post("/v1/embeddings", json={"model": "users", "input": 3, "encoding_format": "base64"})
    assert base64.b64decode(packed.json()["data"][0]["embedding"]) == row.tobytes()
    assert client.get("/v1/embeddings").status_code == 405
    assert client.post("/v1/models").status_code == 405
    assert client.post("/v1/embeddings", content=b"{").status_code == 400
