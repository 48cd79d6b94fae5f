"""The OpenAPI document: what the framework knows, and the lookup routes that are answered before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.schemas import BagRequest, ErrorAnswer, LookupRequest, Rows, SeveralRequest, SeveralRows
from service.wire import BINARY, JSON, MSGPACK

__all__ = ["ERRORS", "REFERENCE", "document"]

REFERENCE = "#/components/schemas/{model}"
ERRORS = {
    "400": "the body cannot be parsed",
    "401": "an API key is needed, or the given one is not known",
    "403": "the key's scope does not allow this",
    "404": "no such table or version",
    "406": "no acceptable answer type",
    "408": "the body did not arrive in time",
    "409": "a version that is not loaded, is damaged or would break clients, or nothing to roll back to",
    "413": "too many ids or bytes",
    "415": "content type not supported",
    "422": "a value is not usable",
    "424": "Redis is needed and gone",
    "429": "over capacity or over the key's rate; see Retry-After",
    "503": "too many connections; see Retry-After",
    "504": "the deadline passed before the answer was ready",
}
VERSION = {
    "name": "X-HFH-Version",
    "in": "header",
    "schema": {"type": "string"},
    "description": "answer from this version, which must be loaded; ?version= does the same",
}
TABLE = {"name": "table", "in": "path", "required": True, "schema": {"type": "string"}}
MODE = {
    "name": "mode",
    "in": "query",
    "schema": {"enum": ["sum", "mean", "max"], "default": "mean"},
    "description": "binary requests only",
}

RAW = {
    "name": "raw",
    "in": "query",
    "schema": {"type": "boolean", "default": False},
    "description": "binary requests only: rows before their last rotation",
}


def document(app: FastAPI, *more: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The whole document, made once; ``more`` add to it what else is answered before the framework."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        models: list[type[BaseModel]] = [LookupRequest, BagRequest, SeveralRequest, Rows, SeveralRows, ErrorAnswer]
        _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
        schema["components"]["schemas"] |= definitions["$defs"]
        schema["paths"]["/v1/tables/{table}/lookup"] = _route(
            "Rows of ids or keys",
            LookupRequest,
            Rows,
            [TABLE, RAW, VERSION],
            {"ids": [1, 2, 3]},
            "little-endian int64 ids",
        )
        schema["paths"]["/v1/tables/{table}/bag"] = _route(
            "One row for each bag of ids",
            BagRequest,
            Rows,
            [TABLE, MODE, VERSION],
            {"ids": [1, 2, 3], "offsets": [0, 2], "mode": "sum"},
            "little-endian int64: the number of bags, the offset of each, then the ids",
        )
        schema["paths"]["/v1/lookup"] = _route(
            "Rows of several tables at once",
            SeveralRequest,
            SeveralRows,
            [VERSION],
            {"tables": {"users": {"ids": [1, 2]}}},
            None,
        )
        for describe in more:
            describe(schema)
        app.openapi_schema = schema
    return app.openapi_schema


def _route(
    summary: str,
    request: type[BaseModel],
    answer: type[BaseModel],
    parameters: list[dict[str, Any]],
    example: dict[str, Any],
    binary: str | None,
) -> dict[str, Any]:
    asked: dict[str, Any] = {JSON: {"schema": _reference(request), "example": example}}
    given: dict[str, Any] = {JSON: {"schema": _reference(answer)}}
    asked[MSGPACK] = {
        "schema": {"type": "string", "format": "binary", "description": "the JSON fields; arrays may be bytes"}
    }
    given[MSGPACK] = {
        "schema": {"type": "string", "format": "binary", "description": "arrays as shape, dtype and data"}
    }
    headers = {"X-HFH-Version": {"schema": {"type": "string"}, "description": "the version that answered"}}
    headers["X-HFH-Overlay"] = {
        "schema": {"const": "stale"},
        "description": "while Redis does not answer: fresh rows are those last known",
    }
    if binary is not None:
        asked[BINARY] = {"schema": {"type": "string", "format": "binary", "description": binary}}
        given[BINARY] = {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "C-order little-endian float32, or float16 with Accept: application/octet-stream;dtype=float16",
            }
        }
        headers["X-HFH-Shape"] = {"schema": {"type": "string"}, "description": "rows,entries; binary answers only"}
        headers["X-HFH-Dtype"] = {
            "schema": {"type": "string"},
            "description": "float32 or float16; binary answers only",
        }
    responses: dict[str, Any] = {
        "200": {"description": "the rows", "content": given, "headers": headers if binary else {}}
    }
    for status, description in ERRORS.items():
        responses[status] = {"description": description, "content": {JSON: {"schema": _reference(ErrorAnswer)}}}
    post = {
        "summary": summary,
        "tags": ["lookup"],
        "requestBody": {"required": True, "content": asked},
        "responses": responses,
    }
    return {"post": post | ({"parameters": parameters} if parameters else {})}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=model.__name__)}
