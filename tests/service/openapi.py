"""Writes docs/openapi.json: python -m tests.service.openapi"""

import json
from pathlib import Path

from starlette.testclient import TestClient

from service.app import create_app
from service.catalog import Catalog
from service.limits import InFlight
from service.metrics import Metrics
from service.reconstructor import Reconstructor
from service.searcher import Searcher
from service.settings import Settings
from service.state import State

if __name__ == "__main__":
    metrics, in_flight = Metrics(), InFlight(1)
    state = State(
        Settings(), Catalog({}), metrics, in_flight, Reconstructor(in_flight, metrics, Settings()), Searcher(1)
    )
    with TestClient(create_app(state)) as client:
        document = client.get("/openapi.json").json()
    document["info"]["version"] = "0"
    path = Path(__file__).parent.parent.parent / "docs" / "openapi.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
