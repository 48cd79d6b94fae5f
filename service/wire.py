"""Arrays to bytes and back: everything about media types in one place.

Request bodies: ``application/json``, ``application/msgpack`` or ``application/octet-stream`` (little-endian int64).
Answers: the same, by the Accept header; without a preference an answer has its request's type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import orjson

from hfh_embed.kernels import json_rows
from service.errors import ApiError, bad_request

__all__ = [
    "BINARY",
    "JSON",
    "MSGPACK",
    "Output",
    "decode",
    "encode_document",
    "integers",
    "json_text",
    "media_type",
    "negotiate",
    "numbers",
]

JSON, MSGPACK, BINARY = "application/json", "application/msgpack", "application/octet-stream"
TYPES = (JSON, MSGPACK, BINARY)
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}


@dataclass(frozen=True)
class Output:
    """The media type of an answer and the dtype of its rows."""

    media: str
    dtype: str = "float32"


def media_type(header: bytes) -> str:
    """The media type of a request's body; 415 for others than the three."""
    media = header.split(b";", 1)[0].strip().lower().decode("latin-1")
    if media not in TYPES:
        raise ApiError(
            415, "unsupported_media_type", f"content type {media[:80]!r} is not supported; send {', '.join(TYPES)}"
        )
    return media


def negotiate(accept: bytes, request_media: str) -> Output:
    """What to answer with: the first of the accepted types that is known."""
    if not accept or accept.strip() == b"*/*":
        return Output(request_media)
    for item in accept.decode("latin-1").lower().split(","):
        media, *parameters = (part.strip() for part in item.split(";"))
        if media in ("*/*", "application/*"):
            return Output(request_media)
        if media in TYPES:
            given = dict(part.split("=", 1) for part in parameters if "=" in part)
            dtype = given.get("dtype", "float32").strip('"')
            if dtype not in DTYPES:
                raise ApiError(
                    406, "not_acceptable", f"dtype {dtype[:40]!r} is not supported; ask for float32 or float16"
                )
            return Output(media, dtype)
    raise ApiError(
        406, "not_acceptable", f"none of {accept.decode('latin-1')[:80]!r} is supported; accept {', '.join(TYPES)}"
    )


def decode(media: str, body: bytes) -> dict[str, Any]:
    """A JSON or msgpack body as an object; 400 where it is not one."""
    try:
        document = orjson.loads(body) if media == JSON else msgpack.unpackb(body)
    except Exception as error:  # msgpack raises many kinds for hostile bytes
        kind = "JSON" if media == JSON else "msgpack"
        raise bad_request(f"the body is not valid {kind} ({str(error)[:120] or type(error).__name__})") from None
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise bad_request("the body must be an object with named fields")
    return document


def invalid(message: str) -> ApiError:
    """422: the body is well-formed, but its values are not usable."""
    return ApiError(422, "invalid_value", message)


def integers(value: Any, what: str, most: int | None = None) -> npt.NDArray[np.int64]:
    """A list of integers, or the bytes of little-endian int64, as an array (n,)."""
    if isinstance(value, bytes):
        if len(value) % 8:
            raise bad_request(f"{what} has {len(value)} bytes, not a multiple of 8; send little-endian int64")
        array = np.frombuffer(value, dtype="<i8")
    elif isinstance(value, list):
        if most is not None and len(value) > most:
            raise too_many(len(value), most)
        if not set(map(type, value)) <= {int}:
            wrong = next(item for item in value if type(item) is not int)
            raise invalid(f"{what} holds {str(wrong)[:40]!r}; give integers from 0 to 2**63 - 1")
        try:
            array = np.array(value, dtype=np.int64)
        except OverflowError:
            raise invalid(f"{what} holds a number beyond 64 bits; give integers from 0 to 2**63 - 1") from None
    else:
        raise invalid(f"{what} is a {type(value).__name__}; give a list of integers")
    if most is not None and len(array) > most:
        raise too_many(len(array), most)
    return array


def too_many(given: int, most: int) -> ApiError:
    """413: more ids than one request may have."""
    return ApiError(413, "too_many_ids", f"{given:,} ids in one request; at most {most:,} are allowed, so split it")


def numbers(value: Any, what: str) -> npt.NDArray[np.float32]:
    """A list of numbers, or the bytes of little-endian float32, as an array (n,)."""
    if isinstance(value, bytes):
        if len(value) % 4:
            raise bad_request(f"{what} has {len(value)} bytes, not a multiple of 4; send little-endian float32")
        return np.frombuffer(value, dtype="<f4")
    if not isinstance(value, list) or not set(map(type, value)) <= {int, float}:
        raise invalid(f"{what} must be a list of numbers")
    with np.errstate(over="ignore"):
        return np.array(value, dtype=np.float64).astype(np.float32)


def encode_document(output: Output, document: dict[str, Any]) -> bytes:
    """An answer with arrays in it as JSON or msgpack."""
    if output.media == JSON:
        return json_text(document)
    packed: bytes = msgpack.packb(document, default=_pack_array)
    return packed


def json_text(document: Any) -> bytes:
    """A document with arrays in it as JSON. Numbers read back as the same float32; what is not finite is null."""
    return orjson.dumps(document, default=_text_of)


def _text_of(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        rows = value[None] if value.ndim == 1 else value
        if (text := json_rows(rows)) is None:
            return orjson.Fragment(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
        return orjson.Fragment(text[1:-1] if value.ndim == 1 else text)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _pack_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        little = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        return {"shape": list(value.shape), "dtype": value.dtype.name, "data": little.tobytes()}
    raise TypeError(f"{type(value).__name__} has no msgpack form")
