"""Stopping under load: not ready, then drained, then gone with 0, and no request fails."""

import http.client
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest

import hfh_embed
from tests.service.conftest import serving

PATH = "/v1/tables/users/lookup"
IDS = np.arange(200)


class Load:
    """Clients that ask without a pause, as a load balancer would let them, and what became of it."""

    def __init__(self, url: str, expected: bytes, kept: bool, count: int = 8) -> None:
        self._address = url.removeprefix("http://")
        self._expected, self._kept = expected, kept
        self.answered, self.failures = 0, list[str]()
        self.closed_by_server = 0
        self.ready = threading.Event()
        self.ready.set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        self._threads.append(threading.Thread(target=self._watch))
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(timeout=30)
            assert not thread.is_alive()

    def _watch(self) -> None:
        """The balancer's readiness probe: once it fails, nothing new is sent here."""
        while self.ready.is_set():
            try:
                probe = http.client.HTTPConnection(self._address, timeout=5)
                probe.request("GET", "/readyz")
                if probe.getresponse().status != 200:
                    self.ready.clear()
                probe.close()
            except OSError:
                self.ready.clear()
            time.sleep(0.05)

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=10)
        while True:
            if connection.sock is None and not self.ready.is_set():
                return  # a new connection is for another replica
            try:
                headers = {"content-type": "application/octet-stream"}
                connection.request("POST", PATH, IDS.astype("<i8").tobytes(), headers)
                answer = connection.getresponse()
                body = answer.read()
                with self._lock:
                    if answer.status != 200 or body != self._expected:
                        self.failures.append(f"status {answer.status}, right: {body == self._expected}")
                    self.answered += 1
                    self.closed_by_server += answer.will_close
                if answer.will_close or not self._kept:
                    connection.close()
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.failures.append(repr(error))
                connection.close()


@pytest.fixture(scope="module")
def expected(snapshot_path) -> bytes:
    return hfh_embed.open(snapshot_path)["users"].lookup(IDS).tobytes()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kept", [True, False], ids=["kept-connections", "new-connections"])
def test_a_stop_under_load_fails_no_request(snapshot_path, expected: bytes, workers: int, kept: bool) -> None:
    flags = ("--drain-delay-s", "1", "--workers", str(workers))
    with serving(str(snapshot_path), *flags) as (url, process):
        _once(url)  # with several workers the port is there before they are
        load = Load(url, expected, kept)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        load.join()
        assert process.wait(timeout=20) == 0
    print(f"{load.answered} answered, {len(load.failures)} failed")
    assert not load.failures
    assert load.answered > 100
    assert load.closed_by_server or not kept


def test_kept_connections_end_orderly_without_a_delay_too(snapshot_path, expected: bytes) -> None:
    with serving(str(snapshot_path)) as (url, process):
        load = Load(url, expected, kept=True)
        time.sleep(0.5)
        load.ready.clear()
        process.send_signal(signal.SIGTERM)
        load.join()
        assert process.wait(timeout=20) == 0
    assert not load.failures
    assert load.closed_by_server == 8


def _ask(connection: http.client.HTTPConnection, path: str = "/readyz") -> tuple[int, bool]:
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.will_close


def _once(url: str, path: str = "/readyz") -> tuple[int, bool]:
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)) as connection:
        return _ask(connection, path)


def _stopping(snapshot_path, *flags: str, check: Callable[[str, http.client.HTTPConnection], None]) -> float:
    """Seconds from SIGTERM to the end of a service; ``check`` gets its address and an idle connection in between."""
    with serving(str(snapshot_path), *flags) as (url, process):
        with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)) as idle:
            assert _ask(idle) == (200, False)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            check(url, idle)
            assert process.wait(timeout=20) == 0
        return time.monotonic() - began


def test_an_idle_connection_may_send_one_more_request(snapshot_path) -> None:
    def check(_: str, idle: http.client.HTTPConnection) -> None:
        time.sleep(0.3)
        assert _ask(idle, "/v1/tables") == (200, True)

    assert _stopping(snapshot_path, check=check) < 20


def test_during_the_delay_it_is_not_ready_but_answers(snapshot_path) -> None:
    def check(url: str, _: http.client.HTTPConnection) -> None:
        time.sleep(0.5)
        assert _once(url, "/readyz") == (503, True)
        assert _once(url, "/v1/tables") == (200, True)

    assert 1.5 < _stopping(snapshot_path, "--drain-delay-s", "1.5", check=check) < 20


def test_a_second_signal_skips_the_delay(snapshot_path) -> None:
    with serving(str(snapshot_path), "--drain-delay-s", "60") as (url, process):
        _once(url)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def test_ctrl_c_skips_the_delay(snapshot_path) -> None:
    with serving(str(snapshot_path), "--drain-delay-s", "60") as (url, process):
        _once(url)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
