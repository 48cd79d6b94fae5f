"""Writes docs/openapi.json: python -m tests.service.openapi"""

import json
from pathlib import Path

from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from service.state import State

ROOT = Path(__file__).parent.parent.parent

if __name__ == "__main__":
    state = State.load(Settings(paths=(ROOT / "tests" / "golden" / "format1" / "exact.hfh",)))
    with TestClient(create_app(state)) as client:
        document = client.get("/openapi.json").json()
    document["info"]["version"] = "0"
    (ROOT / "docs" / "openapi.json").write_text(json.dumps(document, indent=1) + "\n")
