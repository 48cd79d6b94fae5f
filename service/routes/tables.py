"""Which tables there are."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.documents import answers
from service.errors import ApiError
from service.schemas import Overlay, Table, Tables
from service.state import State

__all__ = ["router"]

router = APIRouter(prefix="/v1/tables", tags=["tables"])


@router.get("", summary="All tables")
async def tables(request: Request) -> Tables:
    """Every served table with its sizes, its policy for unknown ids and its version."""
    state: State = request.app.state.hfh
    return Tables(
        tables=[Table.model_validate(served.describe()) for served in state.catalog.values()],
        overlay=Overlay.model_validate(state.overlay.describe()),
    )


@router.get("/{table}", summary="One table", responses=answers(404))
async def table(request: Request, table: str) -> Table:
    """One served table."""
    state: State = request.app.state.hfh
    served = state.catalog.get(table)
    if served is None:
        raise ApiError(404, "table_not_found", f"no table is named {table[:80]!r}; see /v1/tables")
    return Table.model_validate(served.describe())
