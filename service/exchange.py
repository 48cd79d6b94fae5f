"""One HTTP exchange as plain ASGI: reading a bounded body, writing an answer once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from service.errors import ApiError, bad_request, error_body_for

__all__ = ["header", "read_body", "send", "send_error"]

Scope = dict[str, Any]
TOO_LARGE = "body_too_large"


def header(scope: Mapping[str, Any], name: bytes) -> bytes:
    """The first header of this lower-case name, empty if there is none."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return b""


async def read_body(scope: Scope, receive: Any, most: int, timeout_s: float) -> bytes:
    """The whole body. Refused as soon as it is known to be longer than ``most`` bytes, or slower than ``timeout_s``."""
    length = header(scope, b"content-length")
    if length.isdigit() and int(length) > most:
        raise _too_large(int(length), most)
    try:
        async with asyncio.timeout(timeout_s):
            return await _read_parts(receive, most)
    except TimeoutError:
        raise ApiError(408, "body_timeout", f"the body did not arrive within {timeout_s:g} s") from None


async def _read_parts(receive: Any, most: int) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body", False) and len(body) <= most:
        return body  # the usual case: all at once
    parts = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise bad_request("the client went away before its body was complete")
        parts += message.get("body", b"")
        if len(parts) > most:
            raise _too_large(len(parts), most)
        if not message.get("more_body", False):
            return bytes(parts)
        message = await receive()


def _too_large(given: int, most: int) -> ApiError:
    return ApiError(
        413, TOO_LARGE, f"a body of {given:,} bytes; at most {most:,} are allowed, so send fewer ids at once"
    )


async def send(
    send_message: Any, status: int, body: bytes | memoryview, media: str, *extra: tuple[bytes, bytes]
) -> None:
    """Write an answer."""
    headers = [(b"content-type", media.encode()), (b"content-length", b"%d" % len(body)), *extra]
    await send_message({"type": "http.response.start", "status": status, "headers": headers})
    await send_message({"type": "http.response.body", "body": body})


async def send_error(send_message: Any, error: ApiError, path: str = "") -> None:
    """Write an error as clients of this path expect it; a body that was not read ends the connection."""
    extra = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    if error.status in (408, 413):
        extra.append((b"connection", b"close"))
    body = error_body_for(path, error.status, error.type, error.message)
    await send(send_message, error.status, body, "application/json", *extra)
