"""One row with an ETag, for caches that speak HTTP."""

from __future__ import annotations

import hashlib
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Path, Request, Response

from hfh_embed.errors import UnknownIdError
from service import wire
from service.documents import answers, binary, headers, reference
from service.errors import ApiError
from service.pinning import catalog_of, named
from service.schemas import Row
from service.state import State

__all__ = ["router"]

router = APIRouter(tags=["lookup"])


@router.get(
    "/v1/tables/{table}/rows/{id}",
    summary="One row",
    response_class=Response,
    responses=answers(404, 406, 422, 429)
    | {
        200: {
            "description": "the row",
            "content": reference(Row)
            | {wire.MSGPACK: binary("the same"), wire.BINARY: binary("little-endian float32 or float16")},
            "headers": headers("ETag", "Cache-Control", "X-HFH-Version", "X-HFH-Dtype", "X-HFH-Shape"),
        },
        304: {"description": "the row is still the one of If-None-Match"},
    },
)
async def row(request: Request, table: str, id: Annotated[int, Path(ge=0, lt=2**63)]) -> Response:
    """The row of one id. Its ETag changes with the version, with the row and with the media type; caches must revalidate."""
    state: State = request.app.state.hfh
    with state.metrics.measured("row"):
        served = named(await catalog_of(state, request.scope), table)
        output = wire.negotiate(request.headers.get("accept", "").encode("latin-1"), wire.JSON)
        try:
            rows = await state.reconstructor.lookup(served, np.array([id], dtype=np.int64), wire.DTYPES[output.dtype])
        except UnknownIdError as error:
            raise ApiError(404, "id_not_found", str(error)) from None
        digest = hashlib.blake2b(rows.data, digest_size=8, person=output.media[-16:].encode()).hexdigest()
        tag = f'"{served.version}-{digest}"'
        about = {"etag": tag, "cache-control": "no-cache", "vary": "accept", "x-hfh-version": served.version}
        if {tag, "*"} & _tags(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=about)
        if output.media == wire.BINARY:
            about |= {"x-hfh-shape": str(rows.shape[1]), "x-hfh-dtype": output.dtype}
            return Response(rows.tobytes(), 200, about, wire.BINARY)
        document = {"table": table, "version": served.version, "id": id, "embedding": rows[0]}
        return Response(wire.encode_document(output, document), 200, about, output.media)


def _tags(header: str) -> set[str]:
    """The entity tags of If-None-Match, compared weakly."""
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}
