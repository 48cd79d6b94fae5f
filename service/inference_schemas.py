"""The Open Inference Protocol's JSON, for the documentation: requests are read in ``service.tensors`` without models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

__all__ = [
    "Failure",
    "Index",
    "IndexRequest",
    "InferAnswer",
    "InferRequest",
    "Live",
    "Model",
    "ModelReady",
    "Ready",
    "RepositoryRequest",
    "Server",
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Failure(BaseModel):
    """Every error under /v2 looks like this."""

    error: str


class Server(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """The process runs."""

    live: bool


class Ready(BaseModel):
    """The process wants requests."""

    ready: bool


class ModelReady(BaseModel):
    """A table is served."""

    name: str
    ready: bool


class _Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class Model(BaseModel):
    """A table as a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[_Tensor]
    outputs: list[_Tensor]


class _InputParameters(_Strict):
    binary_data_size: int = Field(ge=0)


class _Input(_Strict):
    name: Literal["ids", "keys", "offsets", "per_sample_weights"]
    datatype: Literal["INT64", "BYTES", "FP32"]
    shape: list[int]
    data: list[Any] | None = Field(None, description="flat or nested")
    parameters: _InputParameters | None = None


class _OutputParameters(_Strict):
    binary_data: bool


class _Output(_Strict):
    name: Literal["embeddings", "embeddings_fp16"]
    parameters: _OutputParameters | None = None


class _RequestParameters(_Strict):
    binary_data_output: bool = False
    mode: Literal["sum", "mean", "max"] = Field("mean", description="of bags: with the input offsets")
    include_last_offset: bool = False


class InferRequest(_Strict):
    """Rows of ids or keys; with offsets, bags of them."""

    id: str = ""
    inputs: list[_Input] = Field(min_length=1)
    outputs: list[_Output] | None = None
    parameters: _RequestParameters | None = None


class _Answer(_Tensor):
    data: list[float | None] | None = None
    parameters: dict[str, Any] | None = None


class InferAnswer(BaseModel):
    """The rows."""

    id: str | None = None
    model_name: str
    model_version: str
    outputs: list[_Answer]


class IndexRequest(_Strict):
    """Which tables to list."""

    ready: bool = Field(False, description="only those that are served")


class _Entry(BaseModel):
    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class Index(RootModel[list[_Entry]]):
    """All tables."""


class _RepositoryParameters(_Strict):
    unload_dependents: bool = Field(False, description="of unload; tables have no dependents")


class RepositoryRequest(_Strict):
    """Nothing is needed; what Triton's client sends is accepted."""

    parameters: _RepositoryParameters | None = None
