"""What the routes of one process share."""

from __future__ import annotations

from dataclasses import dataclass

from service.catalog import Catalog
from service.limits import InFlight
from service.metrics import Metrics
from service.reconstructor import Reconstructor
from service.searcher import Searcher
from service.settings import Settings

__all__ = ["State"]


@dataclass
class State:
    """Settings, the served tables, and what is counted. ``ready`` turns false when the process is asked to stop."""

    settings: Settings
    catalog: Catalog
    metrics: Metrics
    in_flight: InFlight
    reconstructor: Reconstructor
    searcher: Searcher
    ready: bool = True

    @classmethod
    def load(cls, settings: Settings) -> State:
        """Open what the settings name; raises as :meth:`Catalog.load`."""
        catalog, metrics = Catalog.load(settings.paths), Metrics()
        in_flight = InFlight(settings.max_in_flight_ids)
        for name, served in catalog.items():
            metrics.snapshot.labels(name, served.version).set(1)
        reconstructor = Reconstructor(in_flight, metrics, settings.thread_ids)
        return cls(settings, catalog, metrics, in_flight, reconstructor, Searcher(settings.max_searches))
