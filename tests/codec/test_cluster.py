"""A local Ray of two processors: the same bytes as one process, from every kind of input, and errors in our words."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfh_embed.cli import main
from hfh_embed.codec import compress
from hfh_embed.codec.cluster import Cluster
from hfh_embed.codec.survey import Chunk, chunks_of
from hfh_embed.errors import InputError, MissingDependencyError
from hfh_embed.tables import read_table

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own settings
COUNT = 140_000
ROWS = (np.random.default_rng(0).normal(size=(COUNT, 12)) / np.arange(1, 13)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_sample(monkeypatch) -> None:
    """Chunks need many rows; the fit does not, nor many states."""
    monkeypatch.setattr("hfh_embed.codec.choice.WORK", 1e6)
    monkeypatch.setattr(sys.modules["hfh_embed.codec.compress"], "SAMPLE_ROWS", 2_000)


@pytest.fixture(scope="module")
def cluster():
    with Cluster("local", workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Three Parquet files of unequal lengths."""
    folder = tmp_path_factory.mktemp("shards")
    for number, part in enumerate(np.split(ROWS, [50_001, 90_000])):
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), ROWS.shape[1])
        pq.write_table(pa.table({"rows": column}), folder / f"{number}.parquet")
    return folder


@pytest.mark.parametrize("kind", ["array", "npy", "fortran npy", "parquet shards"])
def test_the_bytes_are_those_of_one_process(cluster, shards, tmp_path, kind: str) -> None:
    rows = ROWS
    if "npy" in kind:
        np.save(tmp_path / "rows.npy", np.asfortranarray(ROWS) if "fortran" in kind else ROWS)
        rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    elif kind == "parquet shards":
        rows = read_table(shards).rows
    counts = 1 / np.arange(1.0, COUNT + 1)
    made = compress(rows, ratio=10, frequencies=counts, run=cluster)
    assert made.version == compress(ROWS, ratio=10, frequencies=counts).version


def test_wrong_rows_are_listed_as_ever(cluster) -> None:
    rows = ROWS.copy()
    rows[[3, 139_999]] = np.inf
    with pytest.raises(InputError, match=r"rows (3|139999) hold NaN"):
        compress(rows, ratio=10, run=cluster)


def _crash(chunk: Chunk) -> None:
    raise FileNotFoundError(f"no such shard: {chunk.number}")


def test_a_failing_task_is_told_in_a_sentence(cluster) -> None:
    with pytest.raises(
        InputError, match=r"a task of the cluster failed .*FileNotFoundError: no such shard: 0.* the same path"
    ) as caught:
        list(cluster(_crash, chunks_of(10)))
    assert "\n" not in str(caught.value)


WATCHED = """
import sys
import hfh_embed.codec
from hfh_embed import cli
from hfh_embed.codec.cluster import Cluster
from tests.codec.test_cluster import listening
sys.modules["hfh_embed.codec.compress"].SAMPLE_ROWS = 2_000
sys.modules["hfh_embed.codec.choice"].WORK = 1e6
def leave(self, *error, was=Cluster.__exit__):
    found = listening()
    assert len(found) > 2 and all("127.0.0.1" in address for address in found), found
    was(self, *error)
Cluster.__exit__ = leave
code = cli.main(["compress", {dense!r}, "-o", {out!r}, "--ratio", "10", "--json", "--ray"])
assert not listening(), listening()
sys.exit(code)
"""


def family() -> set[int]:
    """This process and all that it started, directly or not."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = {os.getpid()}
    for _ in range(9):
        found |= {one for one, parent in parents.items() if parent in found}
    return found


def listening() -> list[str]:
    """Where the family listens."""
    lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    mine = family()
    return [line.split()[3] for line in lines if mine & {int(number) for number in re.findall(r"pid=(\d+)", line)}]


def test_the_command_starts_a_ray_that_listens_here_alone_and_ends_it(shards, tmp_path) -> None:
    out = tmp_path / "out.hfh"
    script = WATCHED.format(dense=str(shards), out=str(out))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == compress(ROWS, ratio=10, name="rows", unknown="error").version
    assert [path.name for path in tmp_path.iterdir()] == ["out.hfh"]


def test_without_ray_the_command_names_the_remedy(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError):
        Cluster()
    np.save(tmp_path / "t.npy", ROWS[:100])
    assert main(["compress", str(tmp_path / "t.npy"), "-o", str(tmp_path / "t.hfh"), "--ratio", "4", "--ray"]) == 2
    assert "pip install 'hfh-embed[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:first"])
def test_an_address_without_a_cluster_is_told_in_a_sentence(tmp_path, address: str) -> None:
    np.save(tmp_path / "t.npy", ROWS[:100])
    command = [sys.executable, "-m", "hfh_embed.cli", "compress", str(tmp_path / "t.npy"), "--ratio", "4"]
    command += ["-o", str(tmp_path / "t.hfh"), "--ray", address]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert f"no Ray was found at '{address}'" in done.stderr.splitlines()[-1]
