"""From which version a request is answered: the active ones, or one that it pins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.catalog import Served
from service.errors import ApiError
from service.exchange import header
from service.state import State

__all__ = ["catalog_of", "named", "parameters"]


async def catalog_of(state: State, scope: Mapping[str, Any]) -> Mapping[str, Served]:
    """The tables to answer a request from, taken once: a version is pinned by ``X-HFH-Version`` or ``?version=``.

    Raises:
        ApiError: 404 when there is no such version, 409 when it is not loaded.
    """
    version = header(scope, b"x-hfh-version") or parameters(scope["query_string"]).get("version", "").encode()
    return await state.pinned(version.decode("latin-1")) if version else state.catalog


def named(catalog: Mapping[str, Served], name: str) -> Served:
    """The table that is served under a name; 404 where there is none."""
    served = catalog.get(name)
    if served is None:
        there = ", ".join(list(catalog)[:20])
        raise ApiError(404, "table_not_found", f"no table is named {name[:80]!r}; there are {there}")
    return served


def parameters(query: bytes) -> dict[str, str]:
    """What stands behind the question mark of a URL."""
    return {} if not query else dict(part.partition("=")[::2] for part in query.decode("latin-1").split("&") if part)
