"""The JSON models: what the framework's routes answer, and what the documentation says of the fast path."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "BagRequest",
    "Embeddings",
    "EmbeddingsRequest",
    "ErrorAnswer",
    "LookupRequest",
    "Model",
    "Models",
    "OpenAIError",
    "Readiness",
    "Row",
    "RowIds",
    "Rows",
    "RowsToDelete",
    "RowsToPut",
    "RowsWritten",
    "SearchRequest",
    "SearchRows",
    "SeveralRequest",
    "SeveralRows",
    "Snapshots",
    "Status",
    "Table",
    "Tables",
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Status(BaseModel):
    """A health answer."""

    status: Literal["ok"]


class Overlay(BaseModel):
    """Where rows that clients write are kept."""

    store: Literal["process", "redis"] = Field(description="process: gone when it stops")
    shared: bool = Field(description="whether a write reaches every process; if not, writes are refused")
    stale: bool = Field(description="Redis does not answer; rows are served as last known, writes are refused")


class Readiness(Status):
    """The process wants requests."""

    overlay: Overlay


class Table(BaseModel):
    """One served table."""

    name: str
    num_embeddings: int = Field(description="ids 0 to this, exclusive")
    embedding_dim: int
    raw_dim: int | None = Field(description="entries of raw rows; null where the table has none")
    unknown: Literal["reconstruct", "zero", "error"] = Field(description="what ids outside the table get")
    keys: Literal["vocabulary", "hash"] = Field(description="how string keys become ids")
    version: str = Field(description="of the snapshot that the table belongs to")
    nbytes: int = Field(description="stored bytes of this table alone")
    snapshot_nbytes: int = Field(description="stored bytes of the snapshot, its pools included")
    snapshot_ratio: float = Field(description="dense bytes / stored bytes of the snapshot")
    overlay_rows: int = Field(description="ids with a row written since")


class Tables(BaseModel):
    """All served tables."""

    tables: list[Table]
    overlay: Overlay


class _Ids(_Strict):
    ids: list[int] | None = None
    keys: list[str] | None = None


class LookupRequest(_Ids):
    """Rows of ids or of string keys; give one of the two."""

    raw: bool = Field(False, description="rows before their last rotation, of raw_dim entries; see /v1/tables")


class BagRequest(_Ids):
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


class Row(BaseModel):
    """One row."""

    table: str
    version: str
    id: int
    embedding: list[float | None]


class SearchRequest(_Strict):
    """What to be near to: vectors, or the rows of ids or keys; give one of the three."""

    vectors: list[list[float]] | None = None
    ids: list[int] | None = None
    keys: list[str] | None = None
    k: int = Field(10, ge=1, le=1_000)
    metric: Literal["dot", "cosine", "l2"] = Field("dot", description="l2 is squared, smallest first")
    exclude_self: bool = Field(False, description="with ids or keys: leave the asked row itself out")


class SearchRows(BaseModel):
    """For each query, nearest first: ids, their scores, and their keys where the table has a vocabulary."""

    table: str
    version: str
    metric: Literal["dot", "cosine", "l2"]
    ids: list[list[int]]
    scores: list[list[float | None]]
    keys: list[list[str]] | None = None


class EmbeddingsRequest(_Strict):
    """One embedding for each id or key, or for each list of ids (their mean)."""

    model: str = Field(description="name of a table")
    input: int | str | list[int] | list[str] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = Field("float", description="base64 is little-endian float32")
    dimensions: int | None = Field(None, description="nothing but the table's own")
    user: str | None = None


class _Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float | None] | str


class _Usage(BaseModel):
    prompt_tokens: int = Field(description="ids or keys that were looked up")
    total_tokens: int


class Embeddings(BaseModel):
    """Embeddings in the order of the input."""

    object: Literal["list"]
    data: list[_Embedding]
    model: str
    usage: _Usage


class Model(BaseModel):
    """A table, as OpenAI's API lists models."""

    id: str
    object: Literal["model"]
    created: int = Field(description="when its snapshot was written, in Unix seconds")
    owned_by: Literal["hfh"]


class Models(BaseModel):
    """All tables."""

    object: Literal["list"]
    data: list[Model]


class _OpenAIError(_Error):
    param: str | None
    code: str = Field(description="the stable word for programs")


class OpenAIError(BaseModel):
    """An error as OpenAI's clients read it."""

    error: _OpenAIError


class RowsToPut(_Strict):
    """Rows by id or by string key; give one of the two, and one row for each."""

    ids: list[int] | None = None
    keys: list[str] | None = None
    embeddings: list[list[float]]


class RowsToDelete(_Strict):
    """Whose rows to remove; give one of the three."""

    ids: list[int] | None = None
    keys: list[str] | None = None
    all: Literal[True] | None = None


class RowsWritten(BaseModel):
    """How many rows were written or removed."""

    table: str
    rows: int
    sequence: int | None = Field(description="of the write, ascending; null for a removal")


class RowIds(BaseModel):
    """Ids with a row in the overlay, ascending."""

    table: str
    count: int = Field(description="of all such ids")
    ids: list[int]
    next: int | None = Field(description="ask for those after this one, if there are more")
    store: Literal["process", "redis"]
    stale: bool


class _SnapshotTable(BaseModel):
    name: str
    num_embeddings: int
    embedding_dim: int


class _Snapshot(BaseModel):
    version: str | None = Field(description="null where the file cannot be read")
    file: str
    state: Literal["active", "previous", "inactive", "refused"]
    reason: str | None = Field(description="why it was refused")
    modified_s: float = Field(description="seconds since 1970")
    file_nbytes: int
    nbytes: int | None = Field(description="stored bytes that the ratio counts")
    ratio: float | None = Field(description="dense bytes / stored bytes")
    tables: list[_SnapshotTable]


class Snapshots(BaseModel):
    """All snapshots, given files first, then the newest first."""

    active: list[str]
    previous: list[str] = Field(description="what a rollback would activate")
    durable: bool = Field(description="whether the choice outlives a restart")
    snapshots: list[_Snapshot]
