"""Rows near to a vector, or to another row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response

from hfh_embed import search
from hfh_embed.errors import InputError
from service import wire
from service.calls import CALL
from service.catalog import Served
from service.documents import answers, binary, headers, reference
from service.errors import ApiError
from service.exchange import read_body
from service.pinning import catalog_of, named
from service.schemas import SearchRequest, SearchRows
from service.state import State

__all__ = ["router"]

router = APIRouter(tags=["lookup"])
FIELDS = {"vectors", "ids", "keys", "k", "metric", "exclude_self"}
BOTH = {wire.MSGPACK: binary("the JSON fields; arrays as in lookups")}


@router.post(
    "/v1/tables/{table}/search",
    summary="Nearest rows",
    response_class=Response,
    responses=answers(400, 404, 406, 408, 413, 415, 422, 429)
    | {
        200: {
            "description": "for each query, nearest first",
            "content": reference(SearchRows) | BOTH,
            "headers": headers("X-HFH-Version"),
        }
    },
    openapi_extra={"requestBody": {"required": True, "content": reference(SearchRequest) | BOTH}},
)
async def nearest(request: Request, table: str) -> Response:
    """Exact: the whole table is gone through once for all queries of a request. Rows outside it are not found."""
    state: State = request.app.state.hfh
    settings = state.settings
    with state.metrics.measured("search") as clock:
        body = await read_body(dict(request.scope), request.receive, settings.max_body_bytes, settings.body_timeout_s)
        clock.restart()
        served = named(await catalog_of(state, request.scope), table)
        media = wire.media_type(request.headers.get("content-type", "").encode("latin-1"))
        output = wire.negotiate(request.headers.get("accept", "").encode("latin-1"), media)
        if wire.BINARY in (media, output.media):
            raise ApiError(
                415, "unsupported_media_type", "a search needs JSON or msgpack, for the question and the answer"
            )
        asked = wire.decode(media, body)
        if unknown := asked.keys() - FIELDS:
            raise wire.invalid(f"field {sorted(unknown)[0][:40]!r} is not known; known are {', '.join(sorted(FIELDS))}")
        try:
            queries, own = await _queries(state, served, asked)
            k, metric = asked.get("k", 10), asked.get("metric", "dot")
            search.check(queries, served.table.embedding_dim, k, metric)
        except InputError as error:
            raise wire.invalid(str(error)) from None
        found = await state.searcher.search(served, queries, k, metric, own, lambda: _gone(request))
        document = {
            "table": table,
            "version": served.version,
            "metric": metric,
            "ids": found.ids,
            "scores": found.scores,
        }
        if found.keys is not None:
            document["keys"] = found.keys
        return Response(wire.encode_document(output, document), 200, {"x-hfh-version": served.version}, output.media)


async def _queries(
    state: State, served: Served, asked: dict[str, Any]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64] | None]:
    """The vectors to be near to, and the id that each one is and that is not to be found."""
    given = [name for name in ("vectors", "ids", "keys") if asked.get(name) is not None]
    if len(given) != 1:
        raise wire.invalid("give one of vectors, ids and keys")
    exclude, most = asked.get("exclude_self", False), state.settings.max_queries
    if not isinstance(exclude, bool):
        raise wire.invalid("exclude_self must be true or false")
    value = asked[given[0]]
    if given[0] == "vectors":
        if exclude:
            raise wire.invalid("exclude_self goes with ids or keys; a vector is no row")
        vectors = _vectors(value, served.table.embedding_dim, most)
        call = CALL.get()
        if call is not None:
            await call.spend(len(vectors))
        return vectors, None
    if given[0] == "keys":
        if not isinstance(value, list) or not all(isinstance(key, str) for key in value):
            raise wire.invalid("keys must be a list of strings")
        _bounded(len(value), most)
        ids = served.table.ids_of(value)
    else:
        ids = wire.integers(value, "ids")
        _bounded(len(ids), most)
    rows = await state.reconstructor.lookup(served, ids, np.float32)
    return rows, ids if exclude else None


def _vectors(value: Any, dim: int, most: int) -> npt.NDArray[np.float32]:
    if isinstance(value, bytes):
        flat = wire.numbers(value, "vectors")
        if len(flat) % dim:
            raise wire.invalid(f"vectors have {len(flat)} numbers, not a multiple of the table's {dim}")
        _bounded(len(flat) // dim, most)
        return flat.reshape(-1, dim)
    if not isinstance(value, list):
        raise wire.invalid("vectors must be a list of lists of numbers")
    _bounded(len(value), most)
    rows = [wire.numbers(row, "a vector") for row in value]
    if wrong := [len(row) for row in rows if len(row) != dim]:
        raise wire.invalid(f"a vector has {wrong[0]} numbers; the table's rows have {dim}")
    return np.stack(rows) if rows else np.empty((0, dim), dtype=np.float32)


def _bounded(count: int, most: int) -> None:
    if count > most:
        raise ApiError(
            413, "too_many_queries", f"{count:,} queries in one search; at most {most:,} are allowed, so split it"
        )


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
