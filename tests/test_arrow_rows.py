"""Parquet and Arrow files read part by part: the same rows as all at once, whatever the order and the shards."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfh_embed.arrow_rows import ArrowRows, arrow_files
from hfh_embed.cli import main
from hfh_embed.codec import compress
from hfh_embed.errors import InputError
from hfh_embed.tables import read_table

ROWS = np.random.default_rng(0).normal(size=(7_000, 16)).astype(np.float32)


def _table(rows: np.ndarray, kind: str = "fixed") -> pa.Table:
    if kind == "fixed":
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    else:
        offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
        column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.reshape(-1)))
    return pa.table({"id": np.arange(len(rows)), "vector": column})


def _feather(table: pa.Table, path, batch: int) -> None:
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=batch)


@pytest.fixture(scope="module", params=["parquet", "lists", "arrow"])
def rows(request, tmp_path_factory) -> ArrowRows:
    folder = tmp_path_factory.mktemp("shards")
    for number, (start, stop) in enumerate([(0, 2_001), (2_001, 2_002), (2_002, 7_000)]):
        table = _table(ROWS[start:stop], "lists" if request.param == "lists" else "fixed")
        if request.param == "arrow":
            _feather(table, folder / f"part-{number}.arrow", 700)
        else:
            pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=1_800)
    (folder / "_SUCCESS").touch()
    return ArrowRows(arrow_files(folder))


def test_parts_and_single_rows_in_any_order(rows: ArrowRows) -> None:
    assert (rows.shape, rows.dtype) == (ROWS.shape, np.float32)
    for part in (
        slice(0, 5),
        slice(19_990, 20_010),
        slice(10_000, 60_000),
        slice(69_999, None),
        slice(9, 9),
        slice(None),
    ):
        assert np.array_equal(rows[part], ROWS[part])
    ids = np.random.default_rng(1).integers(0, len(ROWS), 500)
    assert np.array_equal(rows[ids], ROWS[ids])
    assert np.array_equal(np.asarray(rows), ROWS)
    assert np.array_equal(pickle.loads(pickle.dumps(rows))[:3], ROWS[:3]), "other machines open the files themselves"
    with pytest.raises(IndexError):
        rows[np.array([7_000])]


def test_shards_compress_to_the_same_bytes_as_an_array(rows: ArrowRows, monkeypatch) -> None:
    monkeypatch.setattr("hfh_embed.codec.choice.WORK", 1e6, raising=False)
    assert compress(rows, ratio=10).version == compress(ROWS, ratio=10).version


def test_a_folder_is_a_table(tmp_path, capsys) -> None:
    pq.write_table(_table(ROWS[:300]), tmp_path / "a.parquet")
    pq.write_table(_table(ROWS[300:900]), tmp_path / "b.parquet")
    assert np.array_equal(read_table(tmp_path).rows[:], ROWS[:900])
    out = str(tmp_path / "out.hfh")
    assert main(["compress", str(tmp_path), "-o", out, "--ratio", "4"]) == 0
    assert main(["eval", out, "--against", str(tmp_path)]) == 0
    assert main(["update", out, "--rows", str(tmp_path / "a.parquet"), "--append"]) == 0
    assert "added rows      300" in capsys.readouterr().out


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    pq.write_table(_table(ROWS[:300]), tmp_path / "a.parquet")
    pq.write_table(_table(ROWS[:300, :15]), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: rows of column 'vector' from row 0 on differ in length"):
        read_table(tmp_path).rows[:]
    pq.write_table(_table(ROWS[:300].astype(np.float64)), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="in the first file it is"):
        read_table(tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(InputError, match="not a readable parquet"):
        read_table(tmp_path)
    (tmp_path / "b.parquet").unlink()
    whole = (tmp_path / "a.parquet").read_bytes()
    _feather(_table(ROWS[:300]), tmp_path / "c.arrow", 100)
    with pytest.raises(InputError, match="all of one kind"):
        read_table(tmp_path)
    (tmp_path / "c.arrow").write_bytes(whole)
    with pytest.raises(InputError, match="not a readable Arrow"):
        read_table(tmp_path / "c.arrow")
    with pytest.raises(InputError, match="no list column 'id'"):
        read_table(tmp_path / "a.parquet", "id")
    integers = pa.array(ROWS[:9].astype(np.int32).tolist(), pa.list_(pa.int32(), 16))
    pq.write_table(pa.table({"vector": integers}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match="holds int32"):
        read_table(tmp_path / "d.parquet")
    missing = pa.array([[1.0, 2.0], None], pa.list_(pa.float32()))
    pq.write_table(pa.table({"vector": missing}), tmp_path / "e.parquet")
    with pytest.raises(InputError, match="are missing"):
        read_table(tmp_path / "e.parquet")
