"""The Open Inference Protocol: Triton's own client against a real server, and every refusal."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hfh_embed
from service import tensors
from service.errors import ApiError
from tests.builders import N
from tests.service.conftest import serving

httpclient = pytest.importorskip("tritonclient.http")
exceptions = pytest.importorskip("tritonclient.utils")


@pytest.fixture(scope="module")
def triton(snapshot_path):
    with serving(str(snapshot_path), "--max-ids", "500") as (url, _):
        client = httpclient.InferenceServerClient(url.removeprefix("http://"))
        yield client
        client.close()


@pytest.fixture(scope="module")
def snapshot(snapshot_path):
    return hfh_embed.open(snapshot_path)


def _input(name: str, values: np.ndarray, datatype: str, binary: bool):
    tensor = httpclient.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def test_health_and_metadata(triton, snapshot) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("users")
    assert triton.is_model_ready("users", snapshot.version)
    assert not triton.is_model_ready("nobody")
    assert not triton.is_model_ready("users", "7")
    server = triton.get_server_metadata()
    assert server["name"] == "hfh"
    assert "binary_tensor_data" in server["extensions"]
    model = triton.get_model_metadata("users")
    assert model["versions"] == [snapshot.version]
    assert {"name": "ids", "datatype": "INT64", "shape": [-1]} in model["inputs"]
    assert {"name": "embeddings", "datatype": "FP32", "shape": [-1, 40]} in model["outputs"]


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 2), (500,)])
def test_rows_of_ids(triton, snapshot, sent: bool, answered: bool, shape: tuple[int, ...]) -> None:
    ids = np.random.default_rng(0).integers(0, N, shape)
    outputs = [httpclient.InferRequestedOutput("embeddings", binary_data=answered)]
    answer = triton.infer("users", [_input("ids", ids, "INT64", sent)], outputs=outputs, request_id="q7")
    found = answer.as_numpy("embeddings")
    assert found.shape == (*shape, 40)
    assert np.array_equal(found, snapshot["users"].lookup(ids))
    assert answer.get_response()["id"] == "q7"
    assert answer.get_response()["model_version"] == snapshot.version


def test_without_named_outputs_and_with_a_version(triton, snapshot) -> None:
    answer = triton.infer("users", [_input("ids", np.arange(3), "INT64", True)], model_version=snapshot.version)
    assert np.array_equal(answer.as_numpy("embeddings"), snapshot["users"].lookup([0, 1, 2]))
    with pytest.raises(exceptions.InferenceServerException, match="no snapshot has version '1'"):
        triton.infer("users", [_input("ids", np.arange(3), "INT64", True)], model_version="1")


def test_half_precision(triton, snapshot) -> None:
    ids = np.arange(5)
    half = httpclient.InferRequestedOutput("embeddings_fp16")
    answer = triton.infer("users", [_input("ids", ids, "INT64", True)], outputs=[half])
    wanted = snapshot["users"].lookup(ids, dtype=np.float16)
    assert answer.as_numpy("embeddings_fp16").tobytes() == wanted.tobytes()
    both = [half, httpclient.InferRequestedOutput("embeddings", binary_data=False)]
    answer = triton.infer("users", [_input("ids", ids, "INT64", True)], outputs=both)
    assert answer.as_numpy("embeddings_fp16").tobytes() == wanted.tobytes()
    assert np.array_equal(answer.as_numpy("embeddings"), snapshot["users"].lookup(ids))
    with pytest.raises(exceptions.InferenceServerException, match="no JSON form"):
        triton.infer(
            "users",
            [_input("ids", ids, "INT64", True)],
            outputs=[httpclient.InferRequestedOutput("embeddings_fp16", binary_data=False)],
        )


@pytest.mark.parametrize("sent", [True, False])
def test_rows_of_keys(triton, snapshot, sent: bool) -> None:
    keys = np.array(["key 5", "key 1002", "key 5"], dtype=np.object_)
    answer = triton.infer("users", [_input("keys", keys, "BYTES", sent)])
    assert np.array_equal(answer.as_numpy("embeddings"), snapshot["users"].lookup([5, 1002, 5]))
    text = np.array(["käse", ""], dtype=np.object_)
    answer = triton.infer("goods", [_input("keys", text, "BYTES", sent)])
    goods = snapshot["goods"]
    assert np.array_equal(answer.as_numpy("embeddings"), goods.lookup(goods.ids_of(["käse", ""])))
    with pytest.raises(exceptions.InferenceServerException, match="key 'nobody' is not in the vocabulary"):
        triton.infer("users", [_input("keys", np.array(["nobody"], dtype=np.object_), "BYTES", sent)])


@pytest.mark.parametrize("sent", [True, False])
def test_bags(triton, snapshot, sent: bool) -> None:
    ids, offsets = np.array([1, 2, 3, 4]), np.array([0, 2, 2])
    weights = np.array([1, 0.5, 2, -1], dtype=np.float32)
    inputs = [_input("ids", ids, "INT64", sent), _input("offsets", offsets, "INT64", sent)]
    for mode in (None, "sum", "max"):
        parameters = {"mode": mode} if mode else None
        found = triton.infer("users", inputs, parameters=parameters).as_numpy("embeddings")
        assert np.array_equal(found, snapshot["users"].bag(ids, offsets, mode=mode or "mean"))
    inputs.append(_input("per_sample_weights", weights, "FP32", sent))
    found = triton.infer("users", inputs, parameters={"mode": "sum", "include_last_offset": True})
    wanted = snapshot["users"].bag(ids, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
    assert np.array_equal(found.as_numpy("embeddings"), wanted)


def test_refusals_are_told_by_the_client(triton) -> None:
    def refused(table: str, *inputs, **arguments) -> tuple[str, str]:
        with pytest.raises(exceptions.InferenceServerException) as caught:
            triton.infer(table, list(inputs), **arguments)
        return caught.value.status(), caught.value.message()

    ids = _input("ids", np.arange(3), "INT64", True)
    assert refused("nobody", ids) == ("404", "no model is named 'nobody'; see /v1/tables")
    status, message = refused("users", _input("ids", np.array([N]), "INT64", True))
    assert (status, message) == ("400", f"id {N} is outside table 'users', which has ids 0 to {N - 1}")
    assert refused("users", _input("ids", np.arange(501), "INT64", True))[0] == "413"
    assert (
        "has datatype 'INT32'; send INT64"
        in refused("users", _input("ids", np.arange(3, dtype=np.int32), "INT32", True))[1]
    )
    assert "'tokens' is not known" in refused("users", _input("tokens", np.arange(3), "INT64", True))[1]
    assert "one of the inputs" in refused("users", _input("offsets", np.arange(1), "INT64", True))[1]
    assert "goes with the input offsets" in refused("users", ids, parameters={"mode": "sum"})[1]
    assert "'priority', which is not supported" in refused("users", ids, priority=3)[1]
    assert "compressed" in refused("users", ids, request_compression_algorithm="gzip")[1]


def test_tables_leave_and_come_back(snapshot_path, snapshot) -> None:
    with serving(str(snapshot_path)) as (url, _):
        client = httpclient.InferenceServerClient(url.removeprefix("http://"))
        ids = [_input("ids", np.arange(3), "INT64", True)]

        def states() -> dict[str, str]:
            return {model["name"]: model["state"] for model in client.get_model_repository_index()}

        assert states() == {"users": "READY", "goods": "READY"}
        client.unload_model("users")
        client.unload_model("users")
        assert states() == {"users": "UNAVAILABLE", "goods": "READY"}
        assert not client.is_model_ready("users")
        with pytest.raises(exceptions.InferenceServerException, match="no model"):
            client.infer("users", ids)
        client.infer("goods", ids)
        client.load_model("users")
        client.load_model("users")
        assert states() == {"users": "READY", "goods": "READY"}
        assert np.array_equal(client.infer("users", ids).as_numpy("embeddings"), snapshot["users"].lookup([0, 1, 2]))
        for call in (client.load_model, client.unload_model):
            with pytest.raises(exceptions.InferenceServerException, match="no table is named 'nobody'"):
                call("nobody")
        with pytest.raises(exceptions.InferenceServerException, match="'config' is not supported"):
            client.load_model("users", config="{}")
        client.close()


def test_with_several_workers_load_and_unload_are_refused(snapshot_path) -> None:
    with serving(str(snapshot_path), "--workers", "2") as (url, _):
        client = httpclient.InferenceServerClient(url.removeprefix("http://"))
        with pytest.raises(exceptions.InferenceServerException, match="2 workers"):
            client.unload_model("users")
        client.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/users/versions", 404),
        ("GET", "/v2/models/users/infer/x", 404),
        ("GET", "/v2/models/users/infer", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/users/versions/7", 404),
    ],
)
def test_wrong_paths_and_methods(client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert isinstance(answer.json()["error"], str)


IDS = {"name": "ids", "datatype": "INT64", "shape": [2], "data": [1, 2]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": []}, "inputs must be a list"),
        ({"inputs": [IDS, IDS]}, "given twice"),
        ({"inputs": [IDS | {"shape": [3]}]}, "is 2 values; its shape has 3"),
        ({"inputs": [IDS | {"shape": [-1]}]}, "no usable shape"),
        ({"inputs": [IDS | {"shape": [2**40, 2**40]}]}, "at most 500 are allowed"),
        ({"inputs": [IDS | {"shape": [1] * 9}]}, "no usable shape"),
        ({"inputs": [IDS | {"data": [1, "2"]}]}, "give integers"),
        ({"inputs": [IDS | {"data": [1, 2.5]}]}, "give integers"),
        ({"inputs": [IDS | {"data": [[1], 2]}]}, "nested unevenly"),
        ({"inputs": [IDS | {"data": {}}]}, "is a dict"),
        ({"inputs": [{"name": "ids", "datatype": "INT64", "shape": [2]}]}, "either data or"),
        ({"inputs": [IDS | {"parameters": {"binary_data_size": 16}}]}, "either data or"),
        ({"inputs": [IDS | {"parameters": {"shared_memory_region": "x"}}]}, "'shared_memory_region', which is not"),
        ({"inputs": [IDS | {"parameters": 3}]}, "must be an object"),
        ({"outputs": [{"name": "rows"}]}, "output 'rows' is not known"),
        ({"outputs": [{"name": "embeddings"}] * 2}, "asked twice"),
        ({"outputs": [{"name": "embeddings", "parameters": {"classification": 3}}]}, "'classification'"),
        ({"outputs": [{"name": "embeddings", "parameters": {"binary_data": 1}}]}, "true or false"),
        ({"parameters": {"binary_data_output": "yes"}}, "true or false"),
        ({"id": 7}, "id must be a string"),
        ({"model": "x"}, "'model', which is not supported"),
    ],
)
def test_wrong_requests_get_a_sentence(client, change, message: str) -> None:
    answer = client.post("/v2/models/users/infer", json={"inputs": [IDS]} | change)
    assert answer.status_code in (400, 413)
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("length", "size", "data", "message"),
    [
        ("x", 16, bytes(16), "Inference-Header-Content-Length is 'x'"),
        ("9999", 16, bytes(16), "give the bytes of JSON"),
        (None, 8, bytes(16), "its shape has 2 values of 8 bytes"),
        (None, 17, bytes(16), "16 bytes are left"),
        (None, -1, bytes(16), "binary_data_size -1"),
        (None, 16, bytes(20), "4 bytes after the last"),
    ],
)
def test_wrong_binary_requests_get_a_sentence(client, length, size: int, data: bytes, message: str) -> None:
    tensor = {"name": "ids", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": length or str(len(head))}
    answer = client.post("/v2/models/users/infer", content=head + data, headers=headers)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack("<I", 5) + b"ab", "middle of a string"),
        (b"\x01", "middle of a string"),
        (struct.pack("<I", 1) + b"\xff", "not UTF-8"),
        (struct.pack("<I", 1) + b"ab", "1 bytes more"),
        (struct.pack("<I", 2**32 - 1), "middle of a string"),
    ],
)
def test_wrong_strings_get_a_sentence(client, data: bytes, message: str) -> None:
    tensor = {"name": "keys", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    answer = client.post("/v2/models/users/infer", content=head + data, headers=headers)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                sorted(
                    {
                        "name",
                        "shape",
                        "datatype",
                        "parameters",
                        "data",
                        "binary_data_size",
                        "binary_data",
                        "inputs",
                        "outputs",
                        "id",
                    }
                )
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
TENSORS = st.fixed_dictionaries(
    {"name": st.sampled_from(["ids", "keys", "offsets", "x"]) | JSON_VALUES},
    optional={
        "shape": st.lists(st.integers(0, 4), max_size=3) | JSON_VALUES,
        "datatype": st.sampled_from(["INT64", "BYTES", "FP32"]) | JSON_VALUES,
        "data": JSON_VALUES,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 30)}) | JSON_VALUES,
    },
)


@given(st.lists(TENSORS, max_size=3) | JSON_VALUES, JSON_VALUES, JSON_VALUES, st.binary(max_size=40), st.booleans())
def test_no_request_does_more_than_be_refused(inputs, outputs, parameters, data: bytes, binary: bool) -> None:
    head = json.dumps({"inputs": inputs, "outputs": outputs, "parameters": parameters}, allow_nan=True).encode()
    try:
        tensors.question(head + data if binary else head, str(len(head)).encode() if binary else b"", 100)
    except ApiError as error:
        assert error.status in (400, 413, 422)
