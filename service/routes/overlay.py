"""The overlay: rows fresher than the snapshot."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query, Request

from hfh_embed.spec import Unknown
from service import wire
from service.catalog import Served
from service.documents import answers
from service.errors import ApiError, bad_request
from service.exchange import header, read_body
from service.fast_path import key_ids
from service.pinning import named
from service.schemas import RowIds, RowsToDelete, RowsToPut, RowsWritten
from service.state import State
from service.wire import BINARY, JSON

__all__ = ["router"]

router = APIRouter(prefix="/v1/tables/{table}/rows", tags=["overlay"])
Ids = npt.NDArray[np.int64]
MOST_LISTED = 10_000
ERRORS = answers(400, 404, 408, 413, 415, 422, 424)


def _body(model: type, binary: str | None) -> dict[str, Any]:
    bytes_ = {"type": "string", "format": "binary"}
    content: dict[str, Any] = {JSON: {"schema": model.model_json_schema()}}  # type: ignore[attr-defined]
    content[wire.MSGPACK] = {"schema": bytes_ | {"description": "the JSON fields; arrays may be bytes"}}
    if binary is not None:
        content[BINARY] = {"schema": bytes_ | {"description": binary}}
    return {"requestBody": {"required": binary is not None, "content": content}}


@router.get("", summary="Ids that have a row in the overlay", responses=answers(404, 422))
async def listed(
    request: Request,
    table: str,
    after: Annotated[int, Query(ge=-1, lt=2**63, description="only ids greater than this")] = -1,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED, description="at most so many")] = 1_000,
) -> RowIds:
    """The ids in ascending order, a page at a time."""
    state: State = request.app.state.hfh
    served = named(state.catalog, table)
    ids = served.fresh.contents()[0]
    page = ids[np.searchsorted(ids, after, side="right") :][: limit + 1].tolist()
    more = page[limit - 1] if len(page) > limit else None
    return RowIds(
        table=table, count=len(ids), ids=page[:limit], next=more, store=state.overlay.store, stale=state.overlay.stale
    )


BINARY_PUT = "little-endian: the number of rows n as int64, n ids as int64, n rows as float32"


@router.put("", summary="Write rows", responses=ERRORS, openapi_extra=_body(RowsToPut, BINARY_PUT))
async def put(request: Request, table: str) -> RowsWritten:
    """Fresh or corrected rows, for any id from 0 on; served from the next request on."""
    state: State = request.app.state.hfh
    served = named(state.catalog, table)
    media, body = await _read(state, request)
    dim, most = served.table.embedding_dim, state.settings.max_ids
    if media == BINARY:
        ids, rows = _binary(body, dim, most)
    else:
        document = wire.decode(media, body)
        _known(document, {"ids", "keys", "embeddings"})
        ids, rows = _ids(served, document, most), _rows(document.get("embeddings"), dim)
    _check(served, ids, rows)
    sequence = await state.overlay.put(table, ids, rows)
    return RowsWritten(table=table, rows=len(ids), sequence=sequence)


@router.delete("", summary="Remove rows", responses=ERRORS, openapi_extra=_body(RowsToDelete, None))
async def delete(request: Request, table: str) -> RowsWritten:
    """Removes what was written; the rows of the snapshot are served again."""
    state: State = request.app.state.hfh
    served = named(state.catalog, table)
    media, body = await _read(state, request)
    if media == BINARY:
        raise ApiError(415, "unsupported_media_type", "send what to remove as JSON or msgpack")
    document = wire.decode(media, body)
    _known(document, {"ids", "keys", "all"})
    if "all" in document:
        if document != {"all": True}:
            raise wire.invalid('to remove every row give {"all": true} and nothing else')
        ids = None
    else:
        ids = np.unique(_ids(served, document, state.settings.max_ids))
    removed = await state.overlay.drop(table, ids)
    return RowsWritten(table=table, rows=removed, sequence=None)


async def _read(state: State, request: Request) -> tuple[str, bytes]:
    settings = state.settings
    scope = dict(request.scope)
    body = await read_body(scope, request.receive, settings.max_body_bytes, settings.body_timeout_s)
    return wire.media_type(header(scope, b"content-type")), body


def _known(document: dict[str, Any], known: set[str]) -> None:
    if unknown := document.keys() - known:
        raise wire.invalid(f"field {sorted(unknown)[0][:40]!r} is not known; known are {', '.join(sorted(known))}")


def _ids(served: Served, document: dict[str, Any], most: int) -> Ids:
    if ("ids" in document) == ("keys" in document):
        raise wire.invalid("give either ids or keys")
    if "ids" in document:
        return wire.integers(document["ids"], "ids", most)
    return key_ids(served, document["keys"], most)


def _rows(value: Any, dim: int) -> npt.NDArray[np.float32]:
    if isinstance(value, bytes):
        if len(value) % (4 * dim):
            raise bad_request(f"embeddings have {len(value)} bytes, not a multiple of {4 * dim}: {dim} float32 a row")
        return np.frombuffer(value, dtype="<f4").reshape(-1, dim)
    if not isinstance(value, list) or not all(isinstance(row, list) and len(row) == dim for row in value):
        raise wire.invalid(f"embeddings must be a list of rows with {dim} numbers each")
    return wire.numbers([number for row in value for number in row], "embeddings").reshape(-1, dim)


def _binary(body: bytes, dim: int, most: int) -> tuple[Ids, npt.NDArray[np.float32]]:
    count = int.from_bytes(body[:8], "little", signed=True) if len(body) >= 8 else -1
    if not 0 <= count <= len(body) or len(body) != 8 + count * (8 + 4 * dim):
        raise bad_request(f"a binary body is {BINARY_PUT} of {dim} entries")
    if count > most:
        raise wire.too_many(count, most)
    ids = np.frombuffer(body, dtype="<i8", count=count, offset=8)
    return ids, np.frombuffer(body, dtype="<f4", offset=8 + 8 * count).reshape(count, dim)


def _check(served: Served, ids: Ids, rows: npt.NDArray[np.float32]) -> None:
    if len(ids) != len(rows):
        raise wire.invalid(f"{len(ids)} ids, but {len(rows)} rows; give one row for each id")
    if not len(ids):
        raise wire.invalid("there are no rows; give at least one")
    if ids.min() < 0:
        raise wire.invalid(f"id {ids.min()} is negative; give integers from 0 to 2**63 - 1")
    ordered = np.sort(ids)
    if (twice := ordered[1:][ordered[1:] == ordered[:-1]]).size:
        raise wire.invalid(f"id {twice[0]} has two rows; give one for each id")
    if not np.isfinite(rows).all():
        raise wire.invalid("a row holds a number that float32 cannot, or that is not finite")
    spec = served.table.spec
    if served.table.vocabulary is not None and spec.unknown is Unknown.ZERO and (ids == spec.num_embeddings).any():
        raise wire.invalid(f"id {spec.num_embeddings} stands for keys that the vocabulary lacks; its row stays zero")
    padding = spec.padding_id
    if padding is not None and (ids == padding).any():
        raise wire.invalid(f"id {padding} is the padding id of table {served.table.name!r}; its row stays zero")
