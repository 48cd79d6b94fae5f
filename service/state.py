"""What the routes of one process share."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.auth import Keyring
from service.catalog import Catalog
from service.connections import Connections
from service.limits import InFlight
from service.metrics import Metrics
from service.rates import Rates
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
    keys: Keyring = field(default_factory=Keyring)
    rates: Rates = field(default_factory=Rates)
    connections: Connections = field(default_factory=Connections)

    @classmethod
    def load(cls, settings: Settings) -> State:
        """Open what the settings name; raises as :meth:`Catalog.load`."""
        catalog, metrics = Catalog.load(settings.paths), Metrics()
        in_flight = InFlight(settings.max_in_flight_ids)
        for name, served in catalog.items():
            metrics.snapshot.labels(name, served.version).set(1)
        reconstructor = Reconstructor(in_flight, metrics, settings)
        state = cls(settings, catalog, metrics, in_flight, reconstructor, Searcher(settings.max_searches))
        if settings.keys_file is not None:
            state.keys = Keyring.load(settings.keys_file)
        state.rates = Rates(settings.rate_limit_url)
        return state

    def measure(self) -> None:
        """Set the gauges that tell how busy this process is."""
        metrics = self.metrics
        metrics.in_flight.set(self.in_flight.now)
        metrics.most_in_flight.set(self.in_flight.most)
        metrics.connections.set(len(self.connections.open))
        metrics.requests_now.set(len(self.connections.tasks))
        metrics.unread.set(self.connections.unread_bytes)
        metrics.ready.set(int(self.ready))
