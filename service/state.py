"""What the routes of one process share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from hfh_embed.redis_rows import parse_url
from service.auth import Keyring
from service.catalog import Catalog, Served
from service.choice import ChoiceFile
from service.connections import Connections
from service.errors import ApiError
from service.library import Library
from service.limits import InFlight
from service.metrics import Metrics
from service.overlay import Overlay
from service.overlay_redis import RedisOverlay
from service.rates import Rates
from service.reconstructor import Reconstructor
from service.searcher import Searcher
from service.settings import Settings
from service.snapshots import Snapshots

__all__ = ["State"]

LOOK_S = 0.2
log = logging.getLogger("hfh.service")


@dataclass
class State:
    """Settings, the served tables, and what is counted. ``ready`` turns false when the process is asked to stop."""

    settings: Settings
    catalog: Catalog
    metrics: Metrics
    in_flight: InFlight
    reconstructor: Reconstructor
    searcher: Searcher
    overlay: Overlay
    snapshots: Snapshots
    ready: bool = True
    keys: Keyring = field(default_factory=Keyring)
    rates: Rates = field(default_factory=Rates)
    connections: Connections = field(default_factory=Connections)

    @classmethod
    def load(cls, settings: Settings, *, first: bool = True) -> State:
        """Open what the settings name; raises as :meth:`Snapshots.start`, and InputError for a wrong Redis URL."""
        keys = Keyring.load(settings.keys_file) if settings.keys_file is not None else Keyring()
        rates, overlay, metrics = Rates(settings.rate_limit_url), _overlay(settings), Metrics()
        choices = ChoiceFile.place(settings.state_file, settings.paths, settings.workers)
        snapshots = Snapshots(Library(settings.paths), choices, overlay)
        try:
            snapshots.start(first=first, workers=settings.workers)
        except BaseException:
            choices.close()
            raise
        in_flight = InFlight(settings.max_in_flight_ids)
        reconstructor, searcher = Reconstructor(in_flight, metrics, settings), Searcher(settings.max_searches)
        state = cls(settings, Catalog({}), metrics, in_flight, reconstructor, searcher, overlay, snapshots)
        state.keys, state.rates = keys, rates
        snapshots.on_change = state._serve
        if first and settings.workers > 1:  # it serves nobody, and its metrics would be added to the workers'
            state.catalog = snapshots.catalog
        else:
            state._serve(snapshots.catalog)
        return state

    def _serve(self, catalog: Catalog) -> None:
        for name, served in self.catalog.items():
            self.metrics.snapshot.labels(name, served.version).set(0)
        for name, served in catalog.items():
            self.metrics.snapshot.labels(name, served.version).set(1)
        if self.catalog:
            self.metrics.activations.inc()
        self.catalog = catalog

    async def pinned(self, version: str) -> Mapping[str, Served]:
        """The tables of a loaded version; 404 when there is no such version, 409 when it is not loaded."""
        found = self.catalog.versions.get(version)
        if found is None:
            await self.snapshots.refresh()  # another worker may just have activated it
            found = self.catalog.versions.get(version)
        if found is not None:
            return found
        loaded = ", ".join(self.catalog.versions)
        if self.snapshots.knows(version):
            message = f"version {version} is not loaded; loaded are {loaded} (the active ones and those before them)"
            raise ApiError(409, "version_not_loaded", message)
        raise ApiError(404, "version_not_found", f"no snapshot has version {version[:80]!r}; loaded are {loaded}")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow Redis, the other workers and the folders for as long as the process serves."""
        await self.overlay.start()
        looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.wait([looking])
            await self.overlay.close()

    async def _look(self) -> None:
        watch_s, watched = self.settings.watch_s, time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.snapshots.refresh()
                if watch_s and time.monotonic() - watched >= watch_s:
                    watched = time.monotonic()
                    await self.snapshots.watch()
            except ApiError:  # logged where it happened
                pass
            except Exception:
                log.exception("looking for other versions failed")

    def measure(self) -> None:
        """Set the gauges that tell how busy this process is, and how fresh its rows are."""
        metrics = self.metrics
        metrics.in_flight.set(self.in_flight.now)
        metrics.most_in_flight.set(self.in_flight.most)
        metrics.connections.set(len(self.connections.open))
        metrics.requests_now.set(len(self.connections.tasks))
        metrics.unread.set(self.connections.unread_bytes)
        metrics.ready.set(int(self.ready))
        for name, fresh in self.overlay.tables:
            metrics.overlay_rows.labels(name).set(fresh.count)
        metrics.overlay_stale.set(self.overlay.stale)
        metrics.overlay_age.set(self.overlay.age_s)


def _overlay(settings: Settings) -> Overlay:
    bounds = settings.overlay_max_rows, settings.overlay_max_bytes
    if not settings.redis_url:
        return Overlay(*bounds, shared=settings.workers == 1)
    return RedisOverlay(parse_url(settings.redis_url), settings.redis_prefix, *bounds, settings.redis_timeout_s)
