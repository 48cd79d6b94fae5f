import hashlib
import json
import os
import time

import pytest
from starlette.testclient import TestClient

from hfh_embed.cli import main
from hfh_embed.errors import InputError
from service.app import create_app
from service.auth import Keyring, needed_scope, new_key
from service.settings import Settings
from service.state import State

LOOKUP = "/v1/tables/users/lookup"
READ, WRITE, ADMIN = range(3)


def _file(folder, *lines: str):
    path = folder / "keys.yaml"
    path.write_text("keys:\n" + "".join(f"  - {line}\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def keys() -> dict[str, tuple[str, str]]:
    return {scope: new_key(f"the-{scope}er", scope) for scope in ("read", "write", "admin")}


@pytest.fixture(scope="module")
def guarded(snapshot_path, keys, tmp_path_factory):
    file = _file(tmp_path_factory.mktemp("keys"), *(line for _, line in keys.values()))
    state = State.load(Settings(paths=(snapshot_path,), keys_file=file))
    with TestClient(create_app(state), raise_server_exceptions=False) as client:
        yield client


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("method", "path", "level"),
    [
        ("GET", "/livez", None),
        ("GET", "/readyz", None),
        ("GET", "/v2/health/live", None),
        ("GET", "/v2/health/ready", None),
        ("GET", "/", None),
        ("GET", "/docs", None),
        ("GET", "/openapi.json", None),
        ("GET", "/metrics", READ),
        ("GET", "/v1/tables", READ),
        ("GET", "/v1", READ),
        ("GET", "/v2", READ),
        ("POST", LOOKUP, READ),
        ("POST", "/v1/tables/users/search", READ),
        ("POST", "/v1/lookup", READ),
        ("POST", "/v1/embeddings", READ),
        ("POST", "/v1/something/new", READ),
        ("PUT", "/v1/tables/users/rows", WRITE),
        ("DELETE", "/v1/tables/users/rows", WRITE),
        ("POST", "/v1/tables/users/rows", WRITE),
        ("PATCH", "/v1/anything", WRITE),
        ("GET", "/v1/tables/users/rows/5", READ),
        ("GET", "/v1/snapshots", READ),
        ("POST", "/v1/snapshots/0123abcd/activate", ADMIN),
        ("POST", "/v1/snapshots/rollback", ADMIN),
        ("POST", "/v1/snapshots/rollback/", ADMIN),
        ("DELETE", "/v1/snapshots/0123abcd", ADMIN),
        ("POST", "/v2/models/users/infer", READ),
        ("POST", "/v2/repository/index", READ),
        ("POST", "/v2/repository/models/users/load", ADMIN),
        ("POST", "/v2/repository/models/users/unload", ADMIN),
    ],
)
def test_every_route_needs_its_scope(method: str, path: str, level: int | None) -> None:
    assert needed_scope(method, path) == level


def test_metrics_are_open_by_a_setting() -> None:
    assert needed_scope("GET", "/metrics", metrics_open=True) is None


def test_a_key_is_taken_from_both_headers(guarded, keys) -> None:
    key = keys["read"][0]
    for headers in (_bearer(key), {"authorization": f"bearer  {key}"}, {"x-api-key": key}):
        assert guarded.post(LOOKUP, json={"ids": [1]}, headers=headers).status_code == 200


def test_no_key_and_an_unknown_one_get_401(guarded, keys) -> None:
    key = keys["read"][0]
    wrong = [{}, _bearer("hfh_x"), {"x-api-key": key[:-1]}, _bearer(key + "x"), {"authorization": f"Basic {key}"}]
    for headers in (*wrong, {"x-api-key": ""}, {"x-api-key": "x" * 10_000}, {"x-api-key": "ÿ".encode("latin-1")}):
        answer = guarded.post(LOOKUP, json={"ids": [1]}, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert key not in answer.text


def test_a_scope_includes_the_ones_before_and_no_others(guarded, keys) -> None:
    table = {
        "read": (200, 403, 403),
        "write": (200, 404, 403),
        "admin": (200, 404, 404),
    }  # 404: let through, nothing is there
    for scope, expected in table.items():
        headers = _bearer(keys[scope][0])
        answers = (
            guarded.get("/v1/tables", headers=headers),
            guarded.put("/v1/nothing/here", headers=headers),
            guarded.post("/v1/snapshots/x/nothing/here", headers=headers),
        )
        assert tuple(answer.status_code for answer in answers) == expected, scope
    answer = guarded.put("/v1/nothing/here", headers=_bearer(keys["read"][0]))
    assert answer.json()["error"]["message"] == "key 'the-reader' has scope read; this needs write"


def test_health_needs_no_key_but_metrics_do(guarded, keys) -> None:
    assert guarded.get("/livez").status_code == guarded.get("/readyz").status_code == 200
    assert guarded.get("/metrics").status_code == 401
    text = guarded.get("/metrics", headers=_bearer(keys["read"][0])).text
    assert 'hfh_rejected_total{reason="unauthorized"}' in text
    assert 'hfh_rejected_total{reason="forbidden"}' in text


def test_under_v2_an_error_is_a_bare_sentence(guarded) -> None:
    answer = guarded.post("/v2/models/users/infer", json={})
    assert answer.status_code == 401
    assert answer.json() == {
        "error": "an API key is needed; send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
    }


def test_without_a_keys_file_no_key_is_asked_for(client) -> None:
    assert client.get("/v1/tables", headers=_bearer("anything")).status_code == 200


def test_a_known_key_is_found_again_and_an_unknown_one_is_not_remembered(tmp_path) -> None:
    made = [new_key(f"key-{number}", "read") for number in range(50)]
    ring = Keyring.load(_file(tmp_path, *(line for _, line in made)))
    assert len(ring) == 50
    for _ in range(2):
        for number, (key, _) in enumerate(made):
            found = ring.find(key.encode())
            assert found is not None
            assert found.name == f"key-{number}"
        assert ring.find(b"hfh_nobody") is None
    assert len(ring._seen) == 50


def test_a_new_key_is_random_and_only_its_hash_is_kept(capsys) -> None:
    assert main(["keys", "new", "--scope", "read", "--name", "feed", "--rate", "100/second", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    entry = json.loads(made["line"])
    assert entry["sha256"] == hashlib.sha256(made["key"].encode()).hexdigest()
    assert made["key"] not in made["line"]
    assert len(made["key"]) == 4 + 43
    assert main(["keys", "new", "--scope", "read", "--name", "feed"]) == 0
    printed = capsys.readouterr().out
    assert made["key"] not in printed
    assert "- {" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--name", "a b"], "the name 'a b'"), (["--name", "a", "--rate", "many"], "the rate 'many'")],
)
def test_an_unusable_new_key_is_told(arguments, message: str, capsys) -> None:
    assert main(["keys", "new", "--scope", "read", *arguments]) == 2
    assert message in capsys.readouterr().err


HASH = "0" * 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a keys file"),
        ("keys: []", "is not a keys file"),
        ("keys: [1]", "must have name, scope and sha256"),
        ("keyz: [1]", "is not a keys file"),
        ("keys: [{", "not valid YAML"),
        ("keys: [{name: a, scope: read}]", "must have name, scope and sha256"),
        (f"keys: [{{name: a, scope: root, sha256: '{HASH}'}}]", "allowed are read, write, admin"),
        (f"keys: [{{name: a, scope: read, sha256: '{HASH}', colour: red}}]", "must have name, scope and sha256"),
        (f"keys: [{{name: a, scope: read, sha256: '{HASH}', rate: 0/second}}]", "at least 1 id"),
        ("keys: [{name: a, scope: read, sha256: hfh_secret}]", "64 hexadecimal digits, not the key itself"),
        (f"keys: [{{name: 'a/b', scope: read, sha256: '{HASH}'}}]", "the name 'a/b'"),
        (f"keys: [{{name: a, scope: read, sha256: '{HASH}'}}, {{name: a, scope: read, sha256: '{HASH}'}}]", "one name"),
        (
            f"keys: [{{name: a, scope: read, sha256: '{HASH}'}}, {{name: b, scope: read, sha256: '{HASH}'}}]",
            "one digest",
        ),
    ],
)
def test_an_unusable_keys_file_is_told(text: str, message: str, tmp_path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        Keyring.load(path)
    assert "hfh_secret" not in str(caught.value)


def test_keys_are_read_again_when_their_file_changes(snapshot_path, tmp_path) -> None:
    from service.housekeeping import Housekeeping

    (first, first_line), (second, second_line) = new_key("first", "read"), new_key("second", "read")
    file = _file(tmp_path, first_line)
    state = State.load(Settings(paths=(snapshot_path,), keys_file=file))
    house = Housekeeping(state)
    with TestClient(create_app(state)) as client:

        def status(key: str) -> int:
            return client.get("/v1/tables", headers=_bearer(key)).status_code

        assert (status(first), status(second)) == (200, 401)
        _file(tmp_path, second_line)
        os.utime(file, (time.time() + 5, time.time() + 5))
        house._reload_keys()
        assert (status(first), status(second)) == (401, 200)
        file.write_text("keys: nonsense")
        house._reload_keys()
        assert (status(first), status(second)) == (401, 200)
        file.unlink()
        house._reload_keys()
        assert (status(first), status(second)) == (401, 200)


def test_guesses_at_a_key_are_compared_with_all(tmp_path, monkeypatch) -> None:
    made = [new_key(f"key-{number}", "read") for number in range(5)]
    ring = Keyring.load(_file(tmp_path, *(line for _, line in made)))
    import hmac

    compared: list[bytes] = []
    real = hmac.compare_digest

    def watched(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return real(known, given)

    monkeypatch.setattr("service.auth.hmac.compare_digest", watched)
    ring.find(made[0][0].encode())
    ring.find(b"nobody")
    assert len(compared) == 10
