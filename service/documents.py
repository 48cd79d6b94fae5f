"""Pieces of the OpenAPI document that routes share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from service.openapi import ERRORS, REFERENCE
from service.schemas import ErrorAnswer
from service.wire import JSON

__all__ = ["answers", "binary", "headers", "reference"]

HEADERS = {
    "X-HFH-Version": "the version that answered",
    "X-HFH-Shape": "sizes of the rows; binary answers only",
    "X-HFH-Dtype": "float32 or float16; binary answers only",
    "ETag": "changes with the version, the row and the media type",
    "Cache-Control": "no-cache: keep it, but ask again with If-None-Match",
    "Inference-Header-Content-Length": "bytes of JSON before the binary tensors; where there are some",
}
ALL_ERRORS = ERRORS | {"503": "the service is stopping"}


def answers(*statuses: int, model: type[BaseModel] = ErrorAnswer) -> dict[int | str, dict[str, Any]]:
    """Error answers, by status."""
    return {str(status): {"description": ALL_ERRORS[str(status)], "content": reference(model)} for status in statuses}


def reference(model: type[BaseModel]) -> dict[str, Any]:
    """A JSON body of this model."""
    return {JSON: {"schema": {"$ref": REFERENCE.format(model=model.__name__)}}}


def binary(description: str) -> dict[str, Any]:
    """A body of bytes."""
    return {"schema": {"type": "string", "format": "binary", "description": description}}


def headers(*names: str) -> dict[str, Any]:
    """Headers of an answer."""
    return {name: {"schema": {"type": "string"}, "description": HEADERS[name]} for name in names}
