"""Processes that are killed, and disks that are full: no wrong vector, and the service goes on."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hfh_embed
from hfh_embed.cli import main
from service.client import Client, ServiceError
from tests.service.conftest import serving


def _workers(parent: int) -> set[int]:
    """The serving children of a process."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return {int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def _metrics(url: str) -> str:
    return urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()


def _until(condition, seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.1)


def _ready(url: str) -> int:
    found = re.search(r"^hfh_ready_processes (\S+)$", _metrics(url), re.MULTILINE)
    return int(float(found[1])) if found else 0


def test_a_killed_worker_is_replaced_and_no_vector_is_wrong(snapshot_path) -> None:
    table = hfh_embed.open(snapshot_path)["users"]
    ids = np.arange(300)
    expected = table.lookup(ids)
    right, wrong, lost = 0, 0, 0
    done = threading.Event()
    lock = threading.Lock()

    def ask(url: str) -> None:
        nonlocal right, wrong, lost
        with Client(url, retries=2) as client:
            while not done.is_set():
                try:
                    same = np.array_equal(client.lookup("users", ids), expected)
                    with lock:
                        right, wrong = right + same, wrong + (not same)
                except ServiceError:
                    with lock:
                        lost += 1

    with serving(str(snapshot_path), "--workers", "2") as (url, process):
        _until(lambda: _ready(url) == 2)
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        for _ in range(3):
            before = _workers(process.pid)
            victim = min(before)
            os.kill(victim, signal.SIGKILL)
            _until(lambda victim=victim: len(_workers(process.pid) - {victim}) == 2)
            _until(lambda: _ready(url) == 2)  # the dead one's gauges count no more
        done.set()
        for thread in threads:
            thread.join(timeout=20)
    print(f"3 kills: {right} right, {wrong} wrong, {lost} lost after 2 retries")
    assert wrong == 0
    assert lost == 0
    assert right > 100


def test_a_full_disk_behind_the_logs_costs_no_request(snapshot_path) -> None:
    flags = (str(snapshot_path), "--access-log", "true", "--log-level", "debug")
    with serving(*flags, stderr="/dev/full") as (url, _), Client(url, retries=0) as client:
        for _ in range(50):
            assert client.lookup("users", [1]).shape == (1, 40)
        with pytest.raises(ServiceError, match="no table is named"):
            client.lookup("nobody", [1])


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def _fill(folder: Path) -> None:
    left = os.statvfs(folder)
    with (folder / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize)
    assert os.statvfs(folder).f_bavail == 0


def test_a_disk_that_fills_up_behind_the_metrics_costs_nothing(snapshot_path, small_disk: Path) -> None:
    flags = (str(snapshot_path), "--workers", "2")
    with serving(*flags, PROMETHEUS_MULTIPROC_DIR=str(small_disk)) as (url, process):
        _until(lambda: _ready(url) == 2)
        for file in small_disk.glob("*.db"):
            there = file.stat()
            assert there.st_blocks * 512 >= there.st_size, f"{file.name} has no room of its own (FILES in metrics.py)"
        _fill(small_disk)
        workers = _workers(process.pid)
        with Client(url, retries=0) as client:
            for number in range(200):
                assert client.lookup("users", [1]).shape == (1, 40)
                with pytest.raises(ServiceError):
                    client.lookup("users", [number + 5000])
        _until(lambda: 'status="422"' in _metrics(url))  # the other worker tells within a second
        assert _workers(process.pid) == workers, "none died"


def test_metrics_that_cannot_be_kept_are_told_at_the_start(snapshot_path, small_disk: Path) -> None:
    _fill(small_disk)
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(small_disk)}
    command = [sys.executable, "-m", "hfh_embed.cli", "serve", str(snapshot_path), "--workers", "2", "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "metrics cannot be kept in" in done.stderr
    assert "No space left" in done.stderr


def test_a_start_without_keys_on_every_address_warns(snapshot_path, tmp_path) -> None:
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False)):
        log = tmp_path / host
        with serving(str(snapshot_path), "--host", host, stderr=str(log)):
            pass
        assert ("no API keys are set" in log.read_text()) == warned


def test_wrong_settings_of_workers_are_told_once(capsys) -> None:
    assert main(["serve", "x.hfh", "--workers", "2", "--keys-file", "/nowhere/keys.yaml"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
