import re
import time

from starlette.testclient import TestClient

import hfh_embed
from service.app import create_app
from service.metrics import Metrics, _proportional_bytes, _resident_bytes
from service.settings import Settings
from service.state import State
from tests.service.conftest import serving


def _values(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(hfh_\S+) (\S+)$", text, re.MULTILINE)}


def test_the_gauges_tell_what_is(snapshot_path) -> None:
    with TestClient(create_app(State.load(Settings(paths=(snapshot_path,), max_in_flight_ids=123)))) as client:
        found = _values(client.get("/metrics").text)
    assert found["hfh_max_in_flight_ids"] == 123
    assert found["hfh_in_flight_ids"] == 0
    assert found["hfh_ready_processes"] == 1
    assert found[f'hfh_build_info{{version="{hfh_embed.__version__}"}}'] == 1
    assert abs(found["hfh_process_start_seconds"] - time.time()) < 60
    assert 1e7 < found["hfh_proportional_bytes"] <= found["hfh_resident_bytes"] * 1.1


def test_memory_is_zero_where_the_system_does_not_tell(monkeypatch) -> None:
    from pathlib import Path

    def unreadable(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(Path, "read_text", unreadable)
    monkeypatch.setattr(Path, "read_bytes", unreadable)
    assert _resident_bytes() == _proportional_bytes() == 0


def test_two_states_in_one_process_do_not_share_counts() -> None:
    first, second = Metrics(), Metrics()
    first.rejected.labels("over_capacity").inc()
    assert b'reason="over_capacity"' in first.render()
    assert b'reason="over_capacity"' not in second.render()


def test_workers_are_summed(snapshot_path) -> None:
    import urllib.request

    with serving(str(snapshot_path), "--workers", "2", "--max-in-flight-ids", "500") as (url, _):
        ends = time.monotonic() + 20
        found: dict[str, float] = {}
        while found.get("hfh_ready_processes") != 2 or found.get("hfh_max_in_flight_ids") != 1000:
            assert time.monotonic() < ends, found
            time.sleep(0.2)
            found = _values(urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode())
    assert found["hfh_in_flight_requests"] >= 1


def test_what_is_refused_inside_is_counted_by_its_reason(snapshot_path) -> None:
    state = State.load(Settings(paths=(snapshot_path,), max_in_flight_ids=1))
    state.in_flight.now = 1
    with TestClient(create_app(state)) as client:
        answer = client.post("/v1/tables/users/lookup", json={"ids": [1]})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert _values(client.get("/metrics").text)['hfh_rejected_total{reason="over_capacity"}'] == 1
