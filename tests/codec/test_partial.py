"""Runs that were killed go on; what they leave behind, and when it is of no use."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hfh_embed.codec import compress
from hfh_embed.codec.partial import Partial
from hfh_embed.codec.survey import in_turn
from hfh_embed.errors import InputError

COUNT = 150_000
ROWS = (np.random.default_rng(0).normal(size=(COUNT, 16)) / np.arange(1, 17)).astype(np.float32)
RATIO = 10


@pytest.fixture(autouse=True)
def small_sample(monkeypatch) -> None:
    """Chunks need many rows; the fit does not, nor many states."""
    monkeypatch.setattr("hfh_embed.codec.choice.WORK", 1e6, raising=False)
    monkeypatch.setattr(sys.modules["hfh_embed.codec.compress"], "SAMPLE_ROWS", 2_000)


class _StoppedError(Exception):
    pass


def _stopping_after(chunks: int):
    """Works on so many chunks of the encoding, then fails."""

    def run(do, wanted):
        for number, found in enumerate(in_turn(do, wanted)):
            if number == chunks and type(do).__name__ == "Encoder":
                raise _StoppedError
            yield found

    return run


def _counting(done: list[int]):
    def run(do, wanted):
        for chunk, found in in_turn(do, wanted):
            if type(do).__name__ == "Encoder":
                done.append(chunk.number)
            yield chunk, found

    return run


def _stopped(out: Path, identity: object = "same") -> None:
    with Partial(out, identity) as partial, pytest.raises(_StoppedError):
        compress(ROWS, ratio=RATIO, partial=partial, run=_stopping_after(2))


def test_a_second_run_goes_on_and_leaves_nothing(tmp_path) -> None:
    out, said, done = tmp_path / "t.hfh", [], []
    _stopped(out)
    with Partial(out, "same", said.append) as partial:
        snapshot = compress(ROWS, ratio=RATIO, partial=partial, run=_counting(done))
        snapshot.save(out)
        partial.remove()
    assert done == [2]
    assert "67% of the rows are encoded" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["t.hfh"]
    assert snapshot.version == compress(ROWS, ratio=RATIO).version


@pytest.mark.parametrize("what", ["input", "fit"])
def test_a_changed_run_starts_anew(tmp_path, what: str) -> None:
    out, done = tmp_path / "t.hfh", []
    _stopped(out, {"file": ["t.npy", 5]})
    identity = {"file": ["t.npy", 6 if what == "input" else 5]}
    with Partial(out, identity) as partial:
        compress(ROWS, ratio=RATIO if what == "input" else RATIO + 2, partial=partial, run=_counting(done))
        assert done == [0, 1, 2]
        folders = [path for path in partial.folder.iterdir() if path.is_dir()]
        assert len(folders) == (1 if what == "input" else 2)


def test_only_one_run_writes_and_other_folders_stay(tmp_path) -> None:
    out = tmp_path / "t.hfh"
    _stopped(out)
    with Partial(out, "same") as first:
        compress(ROWS, ratio=RATIO, partial=first)
        with Partial(out, "same") as second, pytest.raises(InputError, match="another run"):
            compress(ROWS, ratio=RATIO, partial=second)
    other = tmp_path / "u.hfh.partial"
    other.mkdir()
    (other / "precious").write_text("data")
    with Partial(tmp_path / "u.hfh", "same") as partial, pytest.raises(InputError, match="in the way"):
        compress(ROWS, ratio=RATIO, partial=partial)
    assert (other / "precious").read_text() == "data"


KILLED = """
import os, sys
import hfh_embed.codec
from hfh_embed import cli
from hfh_embed.codec.partial import OnDisk
def record(self, number, errors, was=OnDisk.record):
    was(self, number, errors)
    if number == 1:
        {stop}
OnDisk.record = record
sys.modules["hfh_embed.codec.compress"].SAMPLE_ROWS = 2_000
sys.modules["hfh_embed.codec.choice"].WORK = 1e6
sys.exit(cli.main(["compress", {dense!r}, "-o", {out!r}, "--ratio", "10"]))
"""


@pytest.mark.parametrize(("stop", "code"), [("os.kill(os.getpid(), 9)", -9), ("raise KeyboardInterrupt", 130)])
def test_the_command_goes_on_after_a_kill_or_ctrl_c(tmp_path, stop: str, code: int) -> None:
    dense, out = tmp_path / "t.npy", tmp_path / "t.hfh"
    np.save(dense, ROWS)
    script = KILLED.format(stop=stop, dense=str(dense), out=str(out))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == code, killed.stderr
    if code == 130:
        assert "67% of the rows are encoded and kept in" in killed.stderr
    assert not out.exists()
    script = KILLED.format(stop="pass", dense=str(dense), out=str(out))
    again = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "going on where an earlier run ended: 67%" in again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.hfh", "t.npy"]
