"""The web page at ``/``: plain files, kept in memory, that load nothing from elsewhere."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from service.errors import ApiError

__all__ = ["router"]

router = APIRouter(include_in_schema=False)
TYPES = {
    "index.html": "text/html; charset=utf-8",
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
FILES = {name: (files("service") / "console" / name).read_bytes() for name in TYPES}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@router.get("/")
async def index(request: Request) -> Response:
    """The page."""
    return _file(request, "index.html")


@router.get("/console/{name}")
async def file(request: Request, name: str) -> Response:
    """What the page loads."""
    if name not in FILES:
        raise ApiError(404, "not_found", f"the console has no file {name[:80]!r}")
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    tag = f'"{hashlib.blake2b(FILES[name], digest_size=8).hexdigest()}"'
    headers = HEADERS | {"etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(FILES[name], 200, headers, TYPES[name])
