"""Wire formats: what goes out comes back, and whatever comes in is an array or a refusal."""

import msgpack
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service import wire
from service.errors import ApiError
from service.wire import BINARY, JSON, MSGPACK, Output

INT64 = st.integers(-(2**63), 2**63 - 1)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def _packed(value: object) -> bytes:
    """The value as msgpack, nothing where it has no such form."""
    try:
        return msgpack.packb(value)
    except (OverflowError, UnicodeEncodeError):
        return b""


ROWS = arrays.arrays(
    st.sampled_from([np.float32, np.float16]),
    st.tuples(st.integers(0, 5), st.integers(1, 5)),
    elements={"allow_nan": False, "allow_infinity": False},
)


@given(st.lists(INT64, max_size=50))
def test_ids_come_back_from_lists_and_bytes(ids: list[int]) -> None:
    assert wire.integers(ids, "ids").tolist() == ids
    assert wire.integers(np.array(ids, "<i8").tobytes(), "ids").tolist() == ids
    document = wire.decode(JSON, orjson.dumps({"ids": ids}))
    assert wire.integers(document["ids"], "ids").tolist() == ids
    document = wire.decode(MSGPACK, msgpack.packb({"ids": ids}))
    assert wire.integers(document["ids"], "ids").tolist() == ids


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=50))
def test_weights_come_back_from_lists_and_bytes(values: list[float]) -> None:
    expected = np.array(values, np.float32)
    assert np.array_equal(wire.numbers(values, "weights"), expected)
    assert np.array_equal(wire.numbers(expected.astype("<f4").tobytes(), "weights"), expected)


@given(ANYTHING, st.integers(0, 10))
def test_values_are_arrays_or_refused(value: object, most: int) -> None:
    for read, dtype in (
        (lambda v: wire.integers(v, "x", most), np.int64),
        (lambda v: wire.numbers(v, "x"), np.float32),
    ):
        try:
            array = read(value)
        except ApiError as error:
            assert error.status in (400, 413, 422)
        else:
            assert array.ndim == 1
            assert array.dtype == dtype
            assert dtype is np.float32 or len(array) <= most


@given(st.sampled_from([JSON, MSGPACK]), st.binary(max_size=200) | ANYTHING.map(_packed))
def test_bodies_are_objects_or_refused(media: str, body: bytes) -> None:
    try:
        document = wire.decode(media, body)
    except ApiError as error:
        assert error.status == 400
    else:
        assert all(isinstance(key, str) for key in document)


@given(ROWS)
def test_rows_come_back(rows: np.ndarray) -> None:
    document = {"table": "users", "embeddings": rows}
    seen = orjson.loads(wire.encode_document(Output(JSON), document))["embeddings"]
    assert np.array_equal(np.array(seen, rows.dtype).reshape(rows.shape), rows)
    packed = msgpack.unpackb(wire.encode_document(Output(MSGPACK), document))["embeddings"]
    assert np.array_equal(np.frombuffer(packed["data"], packed["dtype"]).reshape(packed["shape"]), rows)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_json_cannot_say_is_null(value: float) -> None:
    rows = np.array([[1, value]], np.float32)
    assert orjson.loads(wire.encode_document(Output(JSON), {"x": rows})) == {"x": [[1, None]]}


@given(st.binary(max_size=60) | st.sampled_from([BINARY, JSON, MSGPACK, "a/b", "*/*"]).map(str.encode))
def test_headers_are_understood_or_refused(header: bytes) -> None:
    try:
        assert wire.media_type(header) in (JSON, MSGPACK, BINARY)
    except ApiError as error:
        assert error.status == 415
    try:
        output = wire.negotiate(header, JSON)
    except ApiError as error:
        assert error.status == 406
    else:
        assert output.media in (JSON, MSGPACK, BINARY)
        assert output.dtype in wire.DTYPES


@given(
    st.lists(st.sampled_from(["text/html", "image/*;q=0.8", "a"]), max_size=3),
    st.sampled_from([JSON, MSGPACK, BINARY]),
    st.sampled_from(["", ";dtype=float16", "; dtype=float32;q=0.5", ';q=1;dtype="float16"']),
)
def test_the_first_known_type_is_answered(before: list[str], media: str, parameters: str) -> None:
    accept = ", ".join([*before, media + parameters, "application/json"])
    output = wire.negotiate(accept.encode(), BINARY)
    assert output == Output(media, "float16" if "16" in parameters else "float32")
