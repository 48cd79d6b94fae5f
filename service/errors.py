"""The one error shape of the service: ``{"error": {"type", "message", "status"}}``; protocols of others have their own."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

__all__ = ["ApiError", "RefusalError", "bad_request", "error_body", "error_body_for"]


OPENAI = ("/v1/embeddings", "/v1/models")
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error. ``type`` is a stable word for programs, the message a sentence for people."""

    def __init__(self, status: int, type_: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.type, self.message = status, type_, message
        self.headers = dict(headers or {})


class RefusalError(ApiError):
    """The service could not or would not, now: counted in ``hfh_rejected_total`` under its type."""


def bad_request(message: str) -> ApiError:
    """400: the body cannot be parsed at all."""
    return ApiError(400, "malformed_request", message)


def error_body(status: int, type_: str, message: str) -> bytes:
    """The JSON document of an error; text that is not valid UTF-8 is replaced."""
    safe = message.encode("utf-8", "replace").decode()
    return orjson.dumps({"error": {"type": type_, "message": safe, "status": status}})


def error_body_for(path: str, status: int, type_: str, message: str) -> bytes:
    """The error's document as clients of this path expect it: the Open Inference Protocol under /v2 has a bare
    sentence, OpenAI's API its own kinds of errors, with ours as the code."""
    if path == "/v2" or path.startswith("/v2/"):
        return orjson.dumps({"error": message.encode("utf-8", "replace").decode()})
    if path in OPENAI or path.startswith("/v1/models/"):
        kind = OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        safe = message.encode("utf-8", "replace").decode()
        return orjson.dumps({"error": {"message": safe, "type": kind, "param": None, "code": type_, "status": status}})
    return error_body(status, type_, message)
