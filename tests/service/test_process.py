"""`hfh serve` as a process: starting, stopping, wrong input, several workers."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest

import hfh_embed
from hfh_embed.cli import main
from service.client import Client, ServiceError
from tests.service.conftest import serving


def _get(url: str) -> tuple[int, bytes]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.read()


def test_it_serves_answers_and_stops_with_0(snapshot_path) -> None:
    with serving(str(snapshot_path)) as (url, _):
        assert _get(f"{url}/livez") == (200, b'{"status":"ok"}')
        assert _get(f"{url}/readyz")[0] == 200
        assert b"HFH embedding service" in _get(f"{url}/docs")[1]
        with Client(url) as client:
            rows = client.lookup("users", [1, 2])
    assert np.array_equal(rows, hfh_embed.open(snapshot_path)["users"].lookup([1, 2]))


def test_a_folder_is_served(snapshot_path) -> None:
    with serving(str(snapshot_path.parent)) as (url, _), Client(url) as client:
        assert {table["name"] for table in client.tables()} == {"users", "goods"}


def test_ctrl_c_stops_it_too(snapshot_path) -> None:
    with serving(str(snapshot_path)) as (url, process):
        _get(f"{url}/livez")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0


def test_a_stop_right_after_the_start_is_not_lost(snapshot_path) -> None:
    with serving(str(snapshot_path)) as (_, process):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_requests_that_had_begun_are_answered_before_it_stops(snapshot_path) -> None:
    table = hfh_embed.open(snapshot_path)["users"]
    failures: list[Exception] = []
    answered = []
    stop = threading.Event()

    def ask(url: str) -> None:
        ids = np.arange(400)
        with Client(url, retries=0) as client:
            while not stop.is_set():
                try:
                    answered.append(np.array_equal(client.lookup("users", ids), table.lookup(ids)))
                except ServiceError as error:
                    if error.status == 0 and stopping.is_set():
                        return  # it was gone before this request began
                    failures.append(error)
                    return

    stopping = threading.Event()
    with serving(str(snapshot_path)) as (url, process):
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        stopping.set()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        stop.set()
        for thread in threads:
            thread.join(20)
    assert not failures
    assert len(answered) > 10
    assert all(answered)


def test_several_workers_share_one_port(snapshot_path) -> None:
    with serving(str(snapshot_path), "--workers", "2", "--max-ids", "123") as (url, _):
        with Client(url) as client:
            assert client.lookup("users", [5]).shape == (1, 40)
            with pytest.raises(ServiceError, match="at most 123"):
                client.lookup("users", np.zeros(124, dtype=int))
        until = time.monotonic() + 10  # what a worker counts is seen by the others within a second
        while b'hfh_requests_total{route="lookup",status="200"} 1.0' not in _get(f"{url}/metrics")[1]:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_settings_come_from_the_environment_too(snapshot_path) -> None:
    with serving(HFH_PATHS=str(snapshot_path), HFH_MAX_IDS="7") as (url, _), Client(url) as client:
        with pytest.raises(ServiceError, match="at most 7") as caught:
            client.lookup("users", np.arange(8))
        assert (caught.value.status, caught.value.type) == (413, "too_many_ids")


def test_a_port_in_use_is_told(snapshot_path, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(snapshot_path), "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 is in use; give another with --port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no snapshot to serve"),
        (["/nowhere/x.hfh"], "No such file"),
        (["--port", "abc", "x"], "--port 'abc'"),
        (["--workers", "0", "x"], "--workers '0'"),
        (["--max-ids", "-5", "x"], "--max-ids '-5'"),
        ([__file__], "header"),
    ],
)
def test_what_cannot_be_served_is_told(arguments: list[str], message: str, capsys) -> None:
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_an_empty_folder_and_a_clash_of_names_are_told(snapshot_path, tmp_path, capsys) -> None:
    assert main(["serve", str(tmp_path)]) == 2
    assert "holds no snapshot" in capsys.readouterr().err
    copy = tmp_path / "copy.hfh"
    copy.write_bytes(snapshot_path.read_bytes())
    assert main(["serve", str(copy), str(snapshot_path)]) == 2
    assert "both have a table" in capsys.readouterr().err


def test_an_unknown_flag_is_refused(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--colour", "red"])
    assert caught.value.code == 2
    assert "--colour" in capsys.readouterr().err


def _raw(url: str, request: bytes, wait_s: float = 5) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait_s) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def test_slow_hostile_and_vanishing_clients_do_no_harm(snapshot_path) -> None:
    with serving(str(snapshot_path), "--body-timeout-s", "0.5", "--max-body-bytes", "1000") as (url, _):
        head = b"POST /v1/tables/users/lookup HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\n"
        assert b" 408 " in _raw(url, head + b"content-length: 800\r\n\r\nabc")  # a body that never comes
        assert b" 413 " in _raw(url, head + b"content-length: 99999999\r\n\r\n")
        endless = b"transfer-encoding: chunked\r\n\r\n" + 3 * (b"1f4\r\n" + bytes(500) + b"\r\n")
        assert b" 413 " in _raw(url, head + endless)
        assert b"400" in _raw(url, b"\x00\xff nonsense\r\n\r\n")
        host, port = url.removeprefix("http://").split(":")
        for _ in range(50):  # connections that end in the middle
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(head + b"content-length: 800\r\n\r\nabc")
        with Client(url) as client:
            assert client.lookup("users", [1]).shape == (1, 40)


def test_the_service_needs_no_torch() -> None:
    code = "import service.app, service.command, service.client, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0
