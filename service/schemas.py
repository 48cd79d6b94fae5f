"""The JSON models: what the framework's routes answer, and what the documentation says of the fast path."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "BagRequest",
    "ErrorAnswer",
    "LookupRequest",
    "Rows",
    "SeveralRequest",
    "SeveralRows",
    "Status",
    "Table",
    "Tables",
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Status(BaseModel):
    """A health answer."""

    status: Literal["ok"]


class Table(BaseModel):
    """One served table."""

    name: str
    num_embeddings: int = Field(description="ids 0 to this, exclusive")
    embedding_dim: int
    unknown: Literal["reconstruct", "zero", "error"] = Field(description="what ids outside the table get")
    keys: Literal["vocabulary", "hash"] = Field(description="how string keys become ids")
    version: str = Field(description="of the snapshot that the table belongs to")
    nbytes: int = Field(description="stored bytes of this table alone")
    snapshot_nbytes: int = Field(description="stored bytes of the snapshot, its pools included")
    snapshot_ratio: float = Field(description="dense bytes / stored bytes of the snapshot")


class Tables(BaseModel):
    """All served tables."""

    tables: list[Table]


class LookupRequest(_Strict):
    """Rows of ids or of string keys; give one of the two."""

    ids: list[int] | None = None
    keys: list[str] | None = None


class BagRequest(LookupRequest):
    """One row for each bag: bag k has the ids from offsets[k] up to offsets[k + 1]."""

    offsets: list[int]
    mode: Literal["sum", "mean", "max"] = "mean"
    per_sample_weights: list[float] | None = Field(None, description="one for each id, only with mode sum")
    include_last_offset: bool = False


class SeveralRequest(_Strict):
    """What is asked of each table; an object with offsets asks for bags."""

    tables: dict[str, LookupRequest | BagRequest]


class Rows(BaseModel):
    """Rows, one for each id or bag."""

    table: str
    version: str
    embeddings: list[list[float]]


class _TableRows(BaseModel):
    version: str
    embeddings: list[list[float]]


class SeveralRows(BaseModel):
    """Rows by table."""

    tables: dict[str, _TableRows]


class _Error(BaseModel):
    type: str
    message: str
    status: int


class ErrorAnswer(BaseModel):
    """Every error looks like this."""

    error: _Error
