"""The kernels' own threads: started when wanted, asleep when not, a bounded number, gone in a forked process."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hfh_embed.kernels import backends
from tests.builders import CASES, N, snapshot_of

pytestmark = [
    pytest.mark.skipif("native" not in backends(), reason="the compiled kernels are not installed"),
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted by the system's own list"),
]
SANITIZED = "HFH_SANITIZED" in os.environ
IDS = np.random.default_rng(0).integers(0, N, 70_000)
AFRESH = """
import sys
from pathlib import Path
import numpy as np
from tests.builders import CASES, N, snapshot_of
def tasks():
    return set(Path("/proc/self/task").iterdir())
table = snapshot_of(*CASES["line-dim-64"], kernels="native")["users"]
ids, before = np.arange(N).repeat(100), tasks()
for threads in map(int, sys.argv[1:]):
    table.lookup(ids, num_threads=threads)
    started = tasks() - before
    blocked = [int((task / "status").read_text().split("SigBlk:")[1].split()[0], 16) for task in started]
    print(len(started), sum(mask >> 1 & mask >> 14 & 1 for mask in blocked))
"""


def _table():
    return snapshot_of(*CASES["line-dim-64"], kernels="native")["users"]


def _afresh(*threads: int) -> list[tuple[int, int]]:
    """After each lookup of a new process: threads that were started, and those of them that block SIGINT and SIGTERM."""
    command = [sys.executable, "-c", AFRESH, *map(str, threads)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # torch and BLAS start none
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return [(int(line.split()[0]), int(line.split()[1])) for line in done.stdout.splitlines()]


@pytest.mark.skipif(SANITIZED, reason="processes of their own")
def test_threads_are_started_when_they_are_wanted_and_never_more_than_a_bound() -> None:
    assert [started for started, _ in _afresh(1, 2, 2, 3, 2, 10**6)] == [0, 1, 1, 2, 2, 63]


@pytest.mark.skipif(SANITIZED, reason="processes of their own")
def test_signals_are_left_to_the_threads_of_the_program() -> None:
    assert _afresh(3) == [(2, 2)]


def test_threads_without_work_sleep() -> None:
    _table().lookup(IDS, num_threads=4)
    python = {str(thread.native_id) for thread in threading.enumerate()}
    others = [task / "stat" for task in Path("/proc/self/task").iterdir() if task.name not in python]
    assert others
    until = time.monotonic() + 30
    while awake := [state for stat in others if (state := stat.read_text().rpartition(")")[2].split()[0]) != "S"]:
        assert time.monotonic() < until, f"after half a minute without work there are threads in {awake}"
        time.sleep(0.01)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_many_callers_share_the_threads(threads: int) -> None:
    table = _table()
    truth = table.lookup(IDS).tobytes()
    with ThreadPoolExecutor(12) as callers:
        found = list(callers.map(lambda _: table.lookup(IDS, num_threads=threads).tobytes(), range(36)))
    assert set(found) == {truth}


def _child(work: Callable[[], bool]) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(0 if work() else 1))
    child.start()
    child.join(60)
    if child.exitcode is None:
        child.kill()
    return child.exitcode


@pytest.mark.skipif(SANITIZED, reason="the sanitizer's own threads do not survive a fork")
def test_a_forked_process_and_its_own_child_start_threads_of_their_own() -> None:
    table = _table()
    truth = table.lookup(IDS, num_threads=3)

    def same() -> bool:
        return bool((table.lookup(IDS, num_threads=3) == truth).all())

    assert _child(lambda: same() and _child(same) == 0 and same()) == 0
    assert same()


@pytest.mark.skipif(SANITIZED, reason="the sanitizer's own threads do not survive a fork")
def test_a_process_may_fork_while_the_threads_work() -> None:
    table, stop = _table(), threading.Event()
    truth = table.lookup(IDS)

    def busy() -> None:
        while not stop.is_set():
            table.lookup(IDS, num_threads=3)

    callers = [threading.Thread(target=busy) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(10):
            assert _child(lambda: bool((table.lookup(IDS, num_threads=4) == truth).all())) == 0
    finally:
        stop.set()
        for caller in callers:
            caller.join()
