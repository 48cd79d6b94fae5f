import json
from pathlib import Path

import pytest

from service.settings import Settings

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_tables_tell_what_a_client_needs(client, snapshot_path) -> None:
    import hfh_embed

    tables = {table["name"]: table for table in client.get("/v1/tables").json()["tables"]}
    assert tables["users"]["unknown"] == "error"
    assert tables["users"]["keys"] == "vocabulary"
    assert (tables["goods"]["unknown"], tables["goods"]["keys"]) == ("zero", "hash")
    assert tables["users"]["version"] == hfh_embed.open(snapshot_path).version
    assert client.get("/v1/tables/users").json() == tables["users"]
    assert client.get("/v1/tables/nobody").json()["error"]["type"] == "table_not_found"


def test_readiness_ends_when_the_process_is_asked_to_stop(snapshot_path) -> None:
    from starlette.testclient import TestClient

    from service.app import create_app
    from service.state import State

    state = State.load(Settings(paths=(snapshot_path,)))
    with TestClient(create_app(state)) as client:
        assert client.get("/readyz").status_code == 200
        state.ready = False
        assert client.get("/readyz").json()["error"]["type"] == "not_ready"
        assert client.get("/livez").status_code == 200


def test_metrics_count_what_was_asked(snapshot_path) -> None:
    from starlette.testclient import TestClient

    from service.app import create_app
    from service.state import State

    with TestClient(create_app(State.load(Settings(paths=(snapshot_path,))))) as client:
        client.post("/v1/tables/users/lookup", json={"ids": [1, 2, 3]})
        client.post("/v1/tables/users/lookup", json={"ids": ["x"]})
        text = client.get("/metrics").text
    assert 'hfh_requests_total{route="lookup",status="200"} 1.0' in text
    assert 'hfh_requests_total{route="lookup",status="422"} 1.0' in text
    assert 'hfh_ids_total{table="users"} 3.0' in text
    assert 'hfh_request_seconds_count{route="lookup"} 1.0' in text


def test_the_openapi_document_is_the_committed_one(client) -> None:
    served = client.get("/openapi.json").json()
    served["info"]["version"] = "0"
    committed = json.loads((DOCS / "openapi.json").read_text())
    assert served == committed, "write it anew: python -m tests.service.openapi"
    models = {
        f"/v2/models/{{table}}{version}{verb}"
        for version in ("", "/versions/{version}")
        for verb in ("", "/ready", "/infer")
    }
    assert set(served["paths"]) == models | {
        "/livez",
        "/metrics",
        "/readyz",
        "/v1/embeddings",
        "/v1/lookup",
        "/v1/models",
        "/v1/models/{table}",
        "/v1/snapshots",
        "/v1/snapshots/rollback",
        "/v1/snapshots/{version}/activate",
        "/v1/tables",
        "/v1/tables/{table}",
        "/v1/tables/{table}/bag",
        "/v1/tables/{table}/lookup",
        "/v1/tables/{table}/rows/{id}",
        "/v1/tables/{table}/search",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/repository/index",
        "/v2/repository/models/{table}/load",
        "/v2/repository/models/{table}/unload",
        "/v1/tables/{table}/rows",
    }


@pytest.mark.parametrize("setting", list(Settings.model_fields))
def test_every_setting_is_documented(setting: str) -> None:
    assert f"`{setting}`" in (DOCS / "service.md").read_text()


def test_every_metric_is_documented(client) -> None:
    text = (DOCS / "service.md").read_text()
    for line in client.get("/metrics").text.splitlines():
        if line.startswith("# TYPE"):
            name = line.split()[2]
            assert f"`{name}`" in text or name.endswith("_created"), name


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="colour"):
        Settings(colour="red")  # type: ignore[call-arg]
