"""Is it alive, is it ready, how is it doing."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.errors import ApiError
from service.schemas import Overlay, Readiness, Status
from service.state import State

__all__ = ["router"]

router = APIRouter(tags=["health"])


@router.get("/livez", summary="The process runs")
async def livez() -> Status:
    """Answers 200 as long as the process can answer at all."""
    return Status(status="ok")


@router.get("/readyz", summary="The process wants requests")
async def readyz(request: Request) -> Readiness:
    """Answers 200 when tables are loaded, 503 once the process was asked to stop."""
    state: State = request.app.state.hfh
    if not state.ready:
        raise ApiError(503, "not_ready", "the service is stopping")
    return Readiness(status="ok", overlay=Overlay.model_validate(state.overlay.describe()))


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """The text exposition of Prometheus."""
    state: State = request.app.state.hfh
    state.measure()
    state.metrics.measure_memory()
    return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)
