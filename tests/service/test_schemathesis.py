"""schemathesis against every operation: nothing that it makes up brings the service to contradict its own description."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from service.app import create_app
from service.settings import Settings
from service.state import State
from tests.service.conftest import LIMITS

schemathesis = pytest.importorskip("schemathesis")
# Which ids, keys and lengths are usable depends on the table; the document cannot say it, so a refusal is no contradiction.
positive_data_acceptance = pytest.importorskip("schemathesis.specs.openapi.checks").positive_data_acceptance
DOCUMENT = json.loads((Path(__file__).parent.parent.parent / "docs" / "openapi.json").read_text())
OPERATIONS = [(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods]
CASES = [(*operation, "any") for operation in OPERATIONS]
CASES += [(*operation, "goods") for operation in OPERATIONS if "{table}" in operation[1]]
BOUNDS = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def api(snapshot_path):
    state = State.load(Settings(paths=(snapshot_path,), **LIMITS))  # type: ignore[arg-type]
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(state))


@pytest.mark.parametrize(("method", "path", "table"), CASES, ids=map(" ".join, CASES))
def test_the_service_does_what_its_document_says(api, method: str, path: str, table: str) -> None:
    @BOUNDS
    @given(case=api[path][method].as_strategy())
    def check(case) -> None:
        if table != "any":  # one that is there, so that more than the 404 is tried
            case.path_parameters["table"] = table
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    check()
