"""Which versions there are, and which is served."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from service.documents import answers
from service.errors import ApiError
from service.schemas import Snapshots
from service.state import State

__all__ = ["router"]

router = APIRouter(prefix="/v1/snapshots", tags=["snapshots"])

ERRORS = answers(404, 409, 424, 503)


@router.get("", summary="All versions")
async def snapshots(request: Request) -> Snapshots:
    """Every snapshot that the service may serve: active, active before, inactive or refused with the reason."""
    return await _answer(request.app.state.hfh)


@router.post("/rollback", summary="Back to the versions of before", responses=ERRORS)
async def rollback(request: Request) -> Snapshots:
    """Serves what was active before the last change."""
    state: State = request.app.state.hfh
    await state.snapshots.rollback()
    return await _answer(state)


@router.post("/{version}/activate", summary="Serve a version", responses=ERRORS)
async def activate(
    request: Request,
    version: str,
    force: Annotated[bool, Query(description="also where clients of what it replaces would miss something")] = False,
    overlay: Annotated[
        Literal["keep", "drop", "folded"],
        Query(description="rows written since: keep all, drop all of its tables, or drop those that it was made with"),
    ] = "keep",
) -> Snapshots:
    """Verifies, warms and activates a version; where that fails the versions of before keep serving."""
    state: State = request.app.state.hfh
    if overlay != "keep" and state.overlay.stale:
        raise ApiError(
            424, "redis_gone", "overlay rows cannot be dropped while Redis does not answer; nothing was done"
        )
    await state.snapshots.activate(version, force)
    for name, served in state.catalog.versions.get(version, {}).items():
        if overlay == "drop":
            await state.overlay.drop(name)
        elif overlay == "folded" and (sequence := served.snapshot.metadata.get("overlay_sequence", "")).isdecimal():
            await state.overlay.drop(name, until=int(sequence))
    return await _answer(state)


async def _answer(state: State) -> Snapshots:
    found: dict[str, Any] = await state.snapshots.describe()
    return Snapshots.model_validate(found)
