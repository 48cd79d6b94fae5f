"""Single tables taken out of service and back, without touching a file."""

from __future__ import annotations

from service.catalog import Served
from service.errors import ApiError
from service.state import State

__all__ = ["Repository"]


class Repository:
    """Which of the active snapshots' tables are served. An activation serves all of its tables again."""

    def __init__(self, state: State) -> None:
        self._state, self._seen = state, state.catalog
        self._unloaded: dict[str, Served] = {}

    def unloaded(self) -> dict[str, Served]:
        """The tables that are out of service."""
        if self._state.catalog is not self._seen:  # another snapshot was activated meanwhile
            self._seen = self._state.catalog
            self._unloaded.clear()
        return self._unloaded

    def unload(self, name: str) -> None:
        """Stop serving a table; requests that have begun are still answered. 404 where there is none."""
        self._alone()
        if name in self.unloaded():
            return
        if name not in self._state.catalog:
            raise self._missing(name)
        self._unloaded[name] = self._state.catalog[name]
        self._replace(name, None)

    def load(self, name: str) -> None:
        """Serve an unloaded table again; 404 where there is none."""
        self._alone()
        served = self.unloaded().pop(name, None)
        if served is not None:
            self._replace(name, served)
        elif name not in self._state.catalog:
            raise self._missing(name)

    def _replace(self, name: str, served: Served | None) -> None:
        self._state.catalog = self._seen = self._state.catalog.replacing(name, served)
        version = (served or self._unloaded[name]).version
        self._state.metrics.snapshot.labels(name, version).set(int(served is not None))

    def _alone(self) -> None:
        if (workers := self._state.settings.workers) > 1:
            message = f"load and unload act on one process, but {workers} workers answer; use one worker, or activate a snapshot without the table"
            raise ApiError(400, "not_supported", message)

    def _missing(self, name: str) -> ApiError:
        return ApiError(
            404, "table_not_found", f"no table is named {name[:80]!r}; POST /v2/repository/index lists them"
        )
