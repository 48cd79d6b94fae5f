"""Every setting of the service, once: flags, HFH_ variables, the YAML file and the docs come from here.

``service.configuration`` says where the values come from.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["Settings"]


class Settings(BaseModel):
    """The effective settings of one process."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    paths: Annotated[tuple[Path, ...], Field(description="snapshots, or folders of them")] = ()
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    workers: int = Field(1, ge=1, le=256, description="processes; they share the mapped snapshots")
    max_ids: int = Field(100_000, ge=1, description="ids in one request")
    max_body_bytes: int = Field(8_388_608, ge=64, description="bytes of one request's body")
    max_in_flight_ids: int = Field(1_000_000, ge=1, description="ids being answered at once in one process")
    max_connections: int = Field(8_192, ge=1, description="open connections of one process; more are answered with 503")
    max_unread_bytes: int = Field(
        268_435_456, ge=65_536, description="bytes of answers that clients have not read yet, in one process"
    )
    thread_ids: int = Field(4_096, ge=1, description="requests with more ids than this leave the event loop")
    batching: Literal["auto", "on", "off"] = Field(
        "auto", description="answer waiting lookups of a table by one kernel call; auto: where a call is dear"
    )
    max_batch_ids: int = Field(1_024, ge=2, description="ids of one batch; larger requests are never batched")
    max_wait_us: float = Field(0.0, ge=0, le=100_000, description="microseconds to wait for more; 0: none while idle")
    cache_bytes: int = Field(0, ge=0, description="bytes of rows kept for each table whose rows are dear; 0: none")
    header_timeout_s: float = Field(10.0, gt=0, description="seconds a client may take to send a request's head")
    max_queries: int = Field(64, ge=1, le=4_096, description="queries in one search")
    max_searches: int = Field(1, ge=1, le=256, description="searches running at once in one process, a thread each")
    body_timeout_s: float = Field(10.0, gt=0, description="seconds a client may take to send its body")
    write_timeout_s: float = Field(20.0, gt=0, description="seconds a client may leave an answer unread")
    deadline_ms: int | None = Field(
        None, ge=1, le=3_600_000, description="milliseconds for one request; X-HFH-Timeout-Ms may ask for less"
    )
    keep_alive_s: int = Field(75, ge=1, description="seconds an idle connection stays open")
    drain_delay_s: float = Field(
        0.0, ge=0, description="seconds to go on accepting after SIGTERM, not ready, while load balancers notice"
    )
    drain_s: int = Field(30, ge=0, description="seconds that requests have to finish after a stop is asked for")
    backlog: int = Field(2_048, ge=1, description="connections waiting to be accepted")
    keys_file: Path | None = Field(None, description="YAML or JSON file of API keys (see hfh keys); none: no keys")
    metrics_open: bool = Field(False, description="/metrics needs no key")
    rate_limit_url: str | None = Field(
        None, description="where keys' rates are counted: redis://...; none: in each process for itself"
    )
    watch_s: float = Field(
        0.0, ge=0, description="seconds between looks for new snapshots in folders; 0: only when told"
    )
    state_file: str = Field("", description="file with the active versions; in the first writable folder unless given")
    redis_url: str = Field("", description="Redis for rows written by clients; without one they stay in the process")
    redis_prefix: str = Field("hfh", pattern=r"^[A-Za-z0-9_.:-]+$", description="begin of all keys in Redis")
    redis_timeout_s: float = Field(1.0, gt=0, description="seconds that a command may take in Redis")
    overlay_max_rows: int = Field(100_000, ge=0, description="rows written by clients, over all tables")
    overlay_max_bytes: int = Field(268_435_456, ge=0, description="bytes of the rows written by clients")
    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field(
        "warning", description="least level logged"
    )
    access_log: bool = Field(False, description="log a line for each request")
    otel_endpoint: str | None = Field(
        None, description="OTLP/HTTP collector for traces, such as http://collector:4318; none: no tracing"
    )
    otel_sample: float = Field(0.01, ge=0, le=1, description="share of requests that are traced")

    @field_validator("paths", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """In the environment paths are separated as in PATH."""
        return value.split(os.pathsep) if isinstance(value, str) else value
