"""Every setting of the service, once: the command line's flags, the environment's HFH_ variables and the docs come from here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__all__ = ["Settings"]


class Settings(BaseSettings):
    """Settings by name, by environment variable (``HFH_`` and the name in capitals) or by flag."""

    model_config = SettingsConfigDict(env_prefix="HFH_", extra="forbid", frozen=True)

    paths: Annotated[tuple[Path, ...], NoDecode] = Field(default=(), description="snapshots, or folders of them")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    workers: int = Field(1, ge=1, le=256, description="processes; they share the mapped snapshots")
    max_ids: int = Field(100_000, ge=1, description="ids in one request")
    max_body_bytes: int = Field(8_388_608, ge=64, description="bytes of one request's body")
    max_in_flight_ids: int = Field(1_000_000, ge=1, description="ids being answered at once in one process")
    thread_ids: int = Field(4_096, ge=1, description="requests with more ids than this leave the event loop")
    body_timeout_s: float = Field(10.0, gt=0, description="seconds a client may take to send its body")
    keep_alive_s: int = Field(75, ge=1, description="seconds an idle connection stays open")
    drain_s: int = Field(30, ge=0, description="seconds that requests have to finish after a stop is asked for")
    backlog: int = Field(2_048, ge=1, description="connections waiting to be accepted")
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

    @field_validator("paths", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """In the environment paths are separated as in PATH."""
        return value.split(os.pathsep) if isinstance(value, str) else value
