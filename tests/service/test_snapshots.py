"""Versions: what is active at the start, activating, refusing, rolling back, pinning, watching."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import hfh_embed
from hfh_embed.layout import SnapshotSpec
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import Unknown
from service.app import create_app
from service.client import Client
from service.settings import Settings
from service.state import State
from tests.builders import CASES, N, random_arrays
from tests.service.conftest import serving
from tests.service.waiting import until


def write(path: Path, seed: int, age_s: float = 0.0, tables: tuple[str, ...] = ("users",), **changes: Any) -> str:
    """A snapshot with random rows, as old as told; its version."""
    table, pool = CASES["words-1"]
    assert pool is not None
    spec = SnapshotSpec(tuple(table.replace(name=name, **changes) for name in tables), (pool,))
    Snapshot(spec, random_arrays(spec, seed)).save(path)
    stamp = path.stat().st_mtime - age_s
    os.utime(path, (stamp, stamp))
    return hfh_embed.open(path).version


@contextmanager
def service(*paths: Path, **settings: Any) -> Iterator[TestClient]:
    state = State.load(Settings(paths=paths, **settings))
    with TestClient(create_app(state), raise_server_exceptions=False) as client:
        yield client


def served(client: TestClient, table: str = "users", **options: Any) -> tuple[str, np.ndarray]:
    answer = client.post(f"/v1/tables/{table}/lookup", json={"ids": list(range(50))}, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()["version"], np.array(answer.json()["embeddings"], dtype=np.float32)


def rows_in(path: Path, table: str = "users") -> np.ndarray:
    return hfh_embed.open(path)[table].lookup(np.arange(50))


def error_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["type"]


def states(client: TestClient) -> dict[str, str]:
    return {found["file"]: found["state"] for found in client.get("/v1/snapshots").json()["snapshots"]}


def test_the_newest_of_a_folder_is_active_and_others_are_versions_of_it(tmp_path) -> None:
    write(tmp_path / "a.hfh", 1, age_s=100)
    new = write(tmp_path / "b.hfh", 2)
    write(tmp_path / "goods.hfh", 3, age_s=200, tables=("goods",))
    (tmp_path / ".c.hfh").write_bytes(b"being written")
    (tmp_path / "notes.txt").write_bytes(b"not a snapshot")
    with service(tmp_path) as client:
        assert states(client) == {"a.hfh": "inactive", "b.hfh": "active", "goods.hfh": "active"}
        version, rows = served(client)
        assert version == new
        assert np.array_equal(rows, rows_in(tmp_path / "b.hfh"))
        assert np.array_equal(served(client, "goods")[1], rows_in(tmp_path / "goods.hfh", "goods"))
        told = client.get("/v1/snapshots").json()["snapshots"][0]
        assert (told["version"], told["file"]) == (new, "b.hfh")
        assert told["tables"] == [{"name": "users", "num_embeddings": N, "embedding_dim": 40}]
        assert told["ratio"] == round(hfh_embed.open(tmp_path / "b.hfh").ratio, 4)


def test_a_given_file_goes_before_a_folder(tmp_path) -> None:
    old = write(tmp_path / "a.hfh", 1, age_s=100)
    write(tmp_path / "b.hfh", 2)
    with service(tmp_path, tmp_path / "a.hfh") as client:
        assert served(client)[0] == old
        assert states(client) == {"a.hfh": "active", "b.hfh": "inactive"}


def test_activate_and_roll_back(tmp_path) -> None:
    old, new = write(tmp_path / "a.hfh", 1, age_s=100), write(tmp_path / "b.hfh", 2)
    goods = write(tmp_path / "goods.hfh", 3, tables=("goods",))
    with service(tmp_path) as client:
        told = client.post(f"/v1/snapshots/{old}/activate").json()
        assert set(told["active"]) == {old, goods}
        assert set(told["previous"]) == {new, goods}
        assert np.array_equal(served(client)[1], rows_in(tmp_path / "a.hfh"))
        assert client.post(f"/v1/snapshots/{old}/activate").json()["previous"] == told["previous"]
        assert served(client, "goods")[0] == goods
        client.post("/v1/snapshots/rollback")
        assert served(client)[0] == new
        client.post("/v1/snapshots/rollback")
        assert served(client)[0] == old
        metrics = client.get("/metrics").text
    assert f'hfh_snapshot_info{{table="users",version="{old}"}} 1.0' in metrics
    assert f'hfh_snapshot_info{{table="users",version="{new}"}} 0.0' in metrics
    assert "hfh_activations_total 3.0" in metrics


def test_the_choice_outlives_a_restart_and_newer_snapshots_still_win(tmp_path) -> None:
    old, new = write(tmp_path / "a.hfh", 1, age_s=100), write(tmp_path / "b.hfh", 2, age_s=50)
    with service(tmp_path) as client:
        assert client.get("/v1/snapshots").json()["durable"] is True
        client.post(f"/v1/snapshots/{old}/activate")
    with service(tmp_path) as client:
        assert served(client)[0] == old
        assert client.post("/v1/snapshots/rollback").json()["active"] == [new]
        client.post("/v1/snapshots/rollback")
    newest = write(tmp_path / "c.hfh", 3)
    with service(tmp_path) as client:
        assert served(client)[0] == newest
        assert client.post("/v1/snapshots/rollback").json()["active"] == [old]
    (tmp_path / ".hfh-active.json").write_bytes(b'{"active": 5}')
    with service(tmp_path) as client:
        assert served(client)[0] == newest


def test_a_folder_that_may_not_be_written_is_served_too(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir()
    old = write(folder / "a.hfh", 1, age_s=100)
    write(folder / "b.hfh", 2)
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, whom modes do not stop
    with service(folder) as client:
        told = client.post(f"/v1/snapshots/{old}/activate").json()
    assert (told["active"], told["durable"]) == ([old], False)
    assert sorted(path.name for path in folder.iterdir()) == ["a.hfh", "b.hfh"]


def test_a_choice_that_cannot_be_written_changes_nothing(tmp_path) -> None:
    old, new = write(tmp_path / "a.hfh", 1, age_s=100), write(tmp_path / "b.hfh", 2)
    with service(tmp_path, state_file=str(tmp_path / "nowhere" / "state.json")) as client:
        assert error_of(client.post(f"/v1/snapshots/{old}/activate")) == (503, "not_written")
        assert served(client)[0] == new


def test_a_choice_that_cannot_be_written_does_not_keep_workers_from_starting(tmp_path) -> None:
    write(tmp_path / "a.hfh", 1)
    state_file = str(tmp_path / "nowhere" / "state.json")
    with serving(str(tmp_path), "--workers", "2", "--state-file", state_file) as (url, _), Client(url) as client:
        assert np.array_equal(client.lookup("users", np.arange(50)), rows_in(tmp_path / "a.hfh"))


def test_a_damaged_snapshot_is_refused_also_by_force_until_it_is_mended(tmp_path) -> None:
    new = write(tmp_path / "b.hfh", 2)
    bad = write(tmp_path / "a.hfh", 1, age_s=100)
    whole = (tmp_path / "a.hfh").read_bytes()
    broken = bytearray(whole)
    broken[-1] ^= 1
    with service(tmp_path) as client:
        (tmp_path / "a.hfh").write_bytes(broken)
        for query in ("", "?force=true"):
            answer = client.post(f"/v1/snapshots/{bad}/activate{query}")
            assert error_of(answer) == (409, "snapshot_damaged")
            assert "is damaged" in answer.json()["error"]["message"]
        assert states(client)["a.hfh"] == "refused"
        assert served(client)[0] == new
        (tmp_path / "a.hfh").write_bytes(whole[:-5])  # as a copy that was cut off
        told = next(found for found in client.get("/v1/snapshots").json()["snapshots"] if found["file"] == "a.hfh")
        assert (told["state"], told["version"]) == ("refused", None)
        assert "truncated" in told["reason"]
        (tmp_path / "a.hfh").write_bytes(whole)
        assert client.post(f"/v1/snapshots/{bad}/activate").json()["active"] == [bad]


def test_a_damaged_newest_file_does_not_keep_the_service_from_starting(tmp_path) -> None:
    old = write(tmp_path / "a.hfh", 1, age_s=100)
    write(tmp_path / "b.hfh", 2)
    broken = bytearray((tmp_path / "b.hfh").read_bytes())
    broken[-1] ^= 1
    (tmp_path / "b.hfh").write_bytes(broken)
    with service(tmp_path) as client:
        assert served(client)[0] == old
        assert states(client) == {"a.hfh": "active", "b.hfh": "refused"}


@pytest.mark.parametrize(
    ("tables", "changes", "message"),
    [
        (("users",), {}, "no table 'goods'"),
        (("users", "goods"), {"num_embeddings": N - 1}, "1,002 ids instead of 1,003"),
        (("users", "goods", "more"), {"embedding_dim": 39}, "39 entries instead of 40"),
    ],
)
def test_what_would_break_clients_needs_force(tmp_path, tables, changes, message: str) -> None:
    now = write(tmp_path / "a.hfh", 1, tables=("users", "goods"))
    with service(tmp_path) as client:
        if "embedding_dim" in changes:
            table, pool = CASES["line-dim-64"]
            assert pool is not None
            spec = SnapshotSpec(tuple(table.replace(name=name) for name in tables), (pool,))
            Snapshot(spec, random_arrays(spec)).save(tmp_path / "b.hfh")
            other, message = hfh_embed.open(tmp_path / "b.hfh").version, "64 entries instead of 40"
        else:
            other = write(tmp_path / "b.hfh", 2, tables=tables, **changes)
        answer = client.post(f"/v1/snapshots/{other}/activate")
        assert error_of(answer) == (409, "snapshot_incompatible")
        assert message in answer.json()["error"]["message"]
        assert states(client) == {"a.hfh": "active", "b.hfh": "refused"}
        assert served(client)[0] == now
        assert client.post(f"/v1/snapshots/{other}/activate?force=true").json()["active"] == [other]
        assert states(client) == {"a.hfh": "previous", "b.hfh": "active"}


def test_a_policy_that_refuses_more_and_other_keys_need_force(tmp_path) -> None:
    now = write(tmp_path / "a.hfh", 1, unknown=Unknown.ZERO)
    with service(tmp_path) as client:
        stricter = write(tmp_path / "b.hfh", 2)
        answer = client.post(f"/v1/snapshots/{stricter}/activate")
        assert "refuses unknown ids" in answer.json()["error"]["message"]
        table, pool = CASES["words-1"]
        assert pool is not None
        spec = SnapshotSpec((table.replace(unknown=Unknown.ZERO),), (pool,))
        named = Snapshot(spec, random_arrays(spec, 4), vocabularies={"users": [f"key {n}" for n in range(N)]})
        named.save(tmp_path / "c.hfh")
        answer = client.post(f"/v1/snapshots/{named.version}/activate")
        assert "string keys" in answer.json()["error"]["message"]
        assert served(client)[0] == now


def test_a_snapshot_with_more_tables_takes_the_place_of_several(tmp_path) -> None:
    users, goods = write(tmp_path / "u.hfh", 1), write(tmp_path / "g.hfh", 2, tables=("goods",))
    with service(tmp_path) as client:
        both = write(tmp_path / "both.hfh", 3, tables=("users", "goods", "shops"))
        told = client.post(f"/v1/snapshots/{both}/activate").json()
        assert told["active"] == [both]
        assert set(told["previous"]) == {users, goods}
        assert served(client, "shops")[0] == both
        client.post("/v1/snapshots/rollback")
        assert client.post("/v1/tables/shops/lookup", json={"ids": [1]}).status_code == 404


def test_a_request_may_pin_a_loaded_version(tmp_path) -> None:
    first = write(tmp_path / "a.hfh", 1, age_s=100)
    second, third = write(tmp_path / "b.hfh", 2, age_s=50), write(tmp_path / "c.hfh", 3)
    with service(tmp_path) as client:
        client.post(f"/v1/snapshots/{second}/activate")
        for version, name in ((second, "b.hfh"), (third, "c.hfh")):
            by_header = served(client, headers={"x-hfh-version": version})
            by_query = served(client, params={"version": version})
            assert by_header[0] == by_query[0] == version
            assert np.array_equal(by_header[1], rows_in(tmp_path / name))
            assert np.array_equal(by_query[1], rows_in(tmp_path / name))
        several = client.post(
            "/v1/lookup", json={"tables": {"users": {"ids": [1]}}}, headers={"x-hfh-version": third}
        ).json()
        assert several["tables"]["users"]["version"] == third
        lookup = "/v1/tables/users/lookup"
        answer = client.post(lookup, json={"ids": [1]}, headers={"x-hfh-version": first})
        assert error_of(answer) == (409, "version_not_loaded")
        answer = client.post(lookup, json={"ids": [1]}, headers={"x-hfh-version": "nothing"})
        assert error_of(answer) == (404, "version_not_found")
        body = np.array([1, 0, 3], "<i8").tobytes()
        answer = client.post(
            "/v1/tables/users/bag",
            params={"mode": "sum", "version": third},
            content=body,
            headers={"content-type": "application/octet-stream"},
        )
        assert np.array_equal(np.frombuffer(answer.content, "<f4"), rows_in(tmp_path / "c.hfh")[3])


def test_an_activation_is_carried_through_when_its_request_is_given_up(tmp_path) -> None:
    old, new = write(tmp_path / "a.hfh", 1, age_s=100), write(tmp_path / "b.hfh", 2)
    state = State.load(Settings(paths=(tmp_path,)))

    async def check() -> None:
        asking = asyncio.create_task(state.snapshots.activate(old))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert state.catalog["users"].version == new
        await state.snapshots.describe()  # waits for its turn
        assert state.catalog["users"].version == old
        assert state.snapshots.previous == (new,)

    asyncio.run(check())


def test_unknown_versions_and_a_rollback_without_a_before_are_told(tmp_path) -> None:
    write(tmp_path / "a.hfh", 1)
    with service(tmp_path) as client:
        assert error_of(client.post("/v1/snapshots/123456789abc/activate")) == (404, "version_not_found")
        assert error_of(client.post("/v1/snapshots/..%2F..%2Fetc/activate")) == (404, "not_found")
        assert error_of(client.post("/v1/snapshots/rollback")) == (409, "nothing_to_roll_back")


def test_a_watched_folder_activates_what_arrives_and_not_what_was_rolled_back(tmp_path) -> None:
    old = write(tmp_path / "a.hfh", 1, age_s=100)
    with service(tmp_path, watch_s=0.05) as client:
        new = write(tmp_path / "b.hfh", 2)
        until(lambda: served(client)[0] == new, "the new snapshot is served")
        client.post("/v1/snapshots/rollback")
        broken = bytearray((tmp_path / "b.hfh").read_bytes())
        broken[-1] ^= 1
        part = tmp_path / "broken.part"
        part.write_bytes(broken)
        bad = write(tmp_path / "d.part", 4, tables=("other", "users"))
        good = (tmp_path / "d.part").read_bytes()
        (tmp_path / "d.part").write_bytes(good[:-3] + b"abc")
        os.rename(tmp_path / "d.part", tmp_path / "d.hfh")
        until(lambda: states(client).get("d.hfh") == "refused", "the damaged one is refused")
        assert served(client)[0] == old
        (tmp_path / "d.part").write_bytes(good)
        os.rename(tmp_path / "d.part", tmp_path / "d.hfh")
        until(lambda: served(client)[0] == bad, "the mended one is served")


def test_overlay_rows_are_kept_or_dropped_on_activation(tmp_path) -> None:
    old, new = write(tmp_path / "a.hfh", 1, age_s=100), write(tmp_path / "b.hfh", 2)
    rows = "/v1/tables/users/rows"
    with service(tmp_path) as client:
        first = client.put(rows, json={"ids": [1], "embeddings": [[1.0] * 40]}).json()["sequence"]
        client.put(rows, json={"ids": [2], "embeddings": [[2.0] * 40]})
        folded = hfh_embed.open(tmp_path / "b.hfh")
        folded = Snapshot(folded.spec, folded.arrays, metadata={"overlay_sequence": str(first)})
        folded.save(tmp_path / "c.hfh")
        client.post(f"/v1/snapshots/{old}/activate")
        assert (served(client)[1][[1, 2], 0] == [1, 2]).all()
        client.post(f"/v1/snapshots/{folded.version}/activate?overlay=folded")
        assert client.get(rows).json()["ids"] == [2]
        client.post(f"/v1/snapshots/{new}/activate?overlay=drop")
        assert client.get(rows).json()["ids"] == []
        assert np.array_equal(served(client)[1], rows_in(tmp_path / "b.hfh"))
        assert client.post(f"/v1/snapshots/{old}/activate?overlay=burn").status_code == 422
