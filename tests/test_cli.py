"""Every verb as a user types it: what it prints, its exit code, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hfh_embed
from hfh_embed.cli import main
from hfh_embed.errors import InputError
from hfh_embed.verbs.base import bytes_text, whole_number

ROWS = (np.random.default_rng(0).normal(size=(2_000, 24)) / np.sqrt(np.arange(1, 25))).astype(np.float32)


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("dense") / "words.txt"
    lines = [f"word{n} " + " ".join(f"{x:.6g}" for x in row) for n, row in enumerate(ROWS)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def snapshot(dense, tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("snapshot") / "words.hfh")
    assert main(["compress", dense, "-o", path, "--ratio", "8"]) == 0
    return path


def _json(capsys, *arguments: str):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _refused(capsys, *arguments: str, code: int = 2) -> str:
    assert main(list(arguments)) == code
    error = capsys.readouterr().err
    assert error.startswith("hfh ")
    assert len(error.splitlines()) == 1, error
    return error


def test_compress_says_what_it_made(dense, tmp_path, capsys) -> None:
    out = tmp_path / "w.hfh"
    document = _json(capsys, "compress", dense, "-o", str(out), "--ratio", "8", "--name", "w")
    assert document["nbytes"] * 8 <= ROWS.nbytes
    assert document["version"] == hfh_embed.inspect(out).version
    assert main(["compress", dense, "-o", str(out), "--ratio", "6"]) == 0
    text = capsys.readouterr().out
    assert "table 'words', 2,000 x 24" in text
    assert "relative error" in text


def test_update_replaces_rows_and_says_how_well_they_fit(snapshot, dense, tmp_path, capsys) -> None:
    out, rows = str(tmp_path / "u.hfh"), str(tmp_path / "new.txt")
    lines = Path(dense).read_text().splitlines()
    Path(rows).write_text("\n".join([lines[5], lines[3].replace("word3 ", "fresh ")]) + "\n")
    document = _json(capsys, "update", snapshot, "--rows", rows, "-o", out)
    assert (document["changed"], document["added"], document["suits"]) == (1, 1, True)
    with hfh_embed.open(out) as made:
        assert made["words"].ids_of(["word5", "fresh"]).tolist() == [5, 2_000]
        assert made.version == document["version"]
    assert main(["update", snapshot, "--rows", dense, "-o", out]) == 0
    assert "The fit suits these rows." in capsys.readouterr().out


def test_update_refuses_and_writes_nothing_where_rows_do_not_fit(snapshot, tmp_path, capsys) -> None:
    out, rows, ids = tmp_path / "u.hfh", str(tmp_path / "r.npy"), str(tmp_path / "i.npy")
    np.save(rows, np.random.default_rng(1).normal(size=(300, 24)).astype(np.float32))
    np.save(ids, np.arange(300))
    arguments = ("update", snapshot, "--rows", rows, "-o", str(out))
    assert "nothing was written" in _refused(capsys, *arguments, "--ids", ids, "--max-error", "0.001", code=1)
    assert "give the key of each added id" in _refused(capsys, *arguments, "--append")
    assert "the whole table" in _refused(capsys, *arguments)
    assert "not a readable .npy" in _refused(capsys, *arguments, "--ids", snapshot)
    assert not out.exists()


def test_plan_inspect_the_file_and_python_agree_to_the_byte(snapshot, capsys) -> None:
    inspected = _json(capsys, "inspect", snapshot)
    opened = hfh_embed.open(snapshot)
    assert inspected["nbytes"] == opened.nbytes == sum(inspected["parts"].values())
    sizes = inspected["header_nbytes"] + inspected["vocabulary_nbytes"] + inspected["nbytes"]
    assert sizes == inspected["file_nbytes"] == os.path.getsize(snapshot)
    assert main(["inspect", snapshot]) == 0
    assert f"stored {opened.nbytes:,} bytes" in capsys.readouterr().out


def test_plan(capsys) -> None:
    document = _json(capsys, "plan", "--ids", "100M", "--dim", "64", "--ratio", "100")
    assert document["nbytes"] <= 256_000_000
    assert document["tables"]["table"]["num_embeddings"] == 100_000_000
    group = _json(
        capsys, "plan", "--table", "users:1M:64", "--table", "items:200k:32", "--ratio", "100", "--form", "robe"
    )
    assert set(group["tables"]) == {"users", "items"}
    assert group["ratio"] >= 100
    assert main(["plan", "--ids", "1000", "--dim", "8", "--ratio", "4"]) == 0
    assert "ratio 4.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratio", "10"], "not complete"),
        (["--ids", "10", "--ratio", "10"], "not complete"),
        (["--table", "users", "--ratio", "10"], "NAME:N:D"),
        (["--table", "a:1k:8", "--table", "a:1k:8", "--ratio", "10"], "one name"),
        (["--ids", "10", "--dim", "4", "--ratio", "100"], "nearest ratio that can be met is 2.3529"),
        (["--ids", "1k", "--dim", "4", "--ratio", "0.5"], "ratio is 0.5"),
        (["--table", "../x:1k:8", "--ratio", "10"], "not usable"),
    ],
)
def test_plan_refuses(capsys, arguments, message: str) -> None:
    assert message in _refused(capsys, "plan", *arguments)


def test_verify(snapshot, tmp_path, capsys) -> None:
    assert main(["verify", snapshot]) == 0
    assert "every checksum matches" in capsys.readouterr().out
    raw = bytearray(Path(snapshot).read_bytes())
    raw[-1] ^= 1
    (tmp_path / "bad.hfh").write_bytes(raw)
    assert "damaged" in _refused(capsys, "verify", str(tmp_path / "bad.hfh"), code=1)


def test_lookup(snapshot, capsys) -> None:
    table = hfh_embed.open(snapshot)["words"]
    document = _json(capsys, "lookup", snapshot, "words", "0", "1999")
    assert np.array_equal(np.float32(document["embeddings"]), table.lookup([0, 1999]))
    document = _json(capsys, "lookup", snapshot, "words", "--keys", "word7")
    assert document["ids"] == [7]
    assert main(["lookup", snapshot, "words", "--keys", "word7"]) == 0
    assert capsys.readouterr().out.startswith("word7 ")
    for arguments, message in (
        (["words", "2000"], "outside table"),
        (["words", "x"], "not an id"),
        (["words", str(2**63)], "is not allowed"),
        (["words", "--keys", "nobody"], "not in the vocabulary"),
        (["nobody", "1"], "there are words"),
    ):
        assert message in _refused(capsys, "lookup", snapshot, *arguments)


def test_eval(snapshot, dense, tmp_path, capsys) -> None:
    frequencies, plot = tmp_path / "f.npy", tmp_path / "e.png"
    np.save(frequencies, np.arange(2_000))
    arguments = ["eval", snapshot, "--against", dense, "--queries", "50"]
    document = _json(capsys, *arguments, "--frequencies", str(frequencies), "--plot", str(plot))
    assert document["mean_cosine"] > 0.8
    assert document["weighted_error"] > 0
    other = str(tmp_path / "other.hfh")
    assert main(["compress", dense, "-o", other, "--ratio", "16", "--json"]) == 0
    capsys.readouterr()
    both = _json(capsys, *arguments, "--also", other, "--plot", str(plot), "--sample", "500")
    assert both["also"][0]["file"] == other and both["also"][0]["relative_error"] > both["relative_error"]
    assert both["compared"] == 500 and both["cosine_margin"] > 0
    assert main([*arguments, "--also", other]) == 0
    assert "recall@100" in capsys.readouterr().out.splitlines()[-3]
    assert sum(document["parts"].values()) == document["nbytes"]
    assert plot.exists()
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for expected in ("mean cosine", "worst cosine", "word", "relative error", "recall@10", "trellis.codes"):
        assert expected in text
    assert main([*arguments, "--min-cosine", "0.1"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--min-cosine", "0.9999"]) == 1
    assert "below the 0.9999" in capsys.readouterr().err
    assert "from -1 to 1" in _refused(capsys, *arguments, "--min-cosine", "7")
    np.save(frequencies, np.arange(5))
    assert "one number for each" in _refused(capsys, *arguments, "--frequencies", str(frequencies))


def test_export(snapshot, tmp_path, capsys) -> None:
    table = hfh_embed.open(snapshot)["words"]
    for dtype in ("float32", "float16"):
        out = tmp_path / f"{dtype}.npy"
        assert _json(capsys, "export", snapshot, "words", "-o", str(out), "--dtype", dtype)["shape"] == [2_000, 24]
        assert np.array_equal(np.load(out), table.lookup(np.arange(2_000), dtype=np.dtype(dtype)))
    assert "must end in .npy" in _refused(capsys, "export", snapshot, "words", "-o", str(tmp_path / "x.txt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere.npy", "-o", "{tmp}/x.hfh", "--ratio", "8"], "/nowhere.npy: No such file"),
        (["{dense}", "-o", "/nowhere/x.hfh", "--ratio", "8"], "does not exist; create it"),
        (["{dense}", "-o", "{tmp}/x.hfh", "--ratio", "0.5"], "ratio is 0.5"),
        (["{dense}", "-o", "{tmp}/x.hfh", "--ratio", "100000"], "nearest ratio that can be met"),
        (["{dense}", "-o", "{tmp}/x.hfh", "--ratio", "8", "--tensor", "x"], "leave --tensor out"),
        (["{dense}", "-o", "{tmp}/x.hfh", "--ratio", "8", "--name", "a/b"], "not usable"),
    ],
)
def test_compress_refuses_and_leaves_nothing(dense, tmp_path, capsys, arguments, message: str) -> None:
    filled = [argument.format(tmp=tmp_path, dense=dense) for argument in arguments]
    assert message in _refused(capsys, "compress", *filled)
    assert not list(tmp_path.iterdir())


def test_frequencies_come_as_csv_and_parquet_too(tmp_path) -> None:
    from hfh_embed.verbs.compress import read_frequencies

    wanted = np.array([5.0, 0, 2, 9])
    table = pa.table({"id": [3, 0, 2], "count": [9, 5, 2]})
    pq.write_table(table, tmp_path / "pairs.parquet")
    pq.write_table(pa.table({"count": wanted}), tmp_path / "plain.parquet")
    (tmp_path / "pairs.csv").write_text("id,count\n3,9\n0,5\n2,2\n")
    (tmp_path / "plain.csv").write_text("5\n0\n2\n9\n")
    for name in ("pairs.parquet", "plain.parquet", "pairs.csv", "plain.csv"):
        assert read_frequencies(tmp_path / name, 4).tolist() == wanted.tolist(), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n", "one number for each"),
        ("id,n\n9,1\n", "from 0 to 3"),
        ("a\nb\n", "not a number"),
        ("", "one number a line"),
    ],
)
def test_frequencies_that_do_not_fit_are_refused(tmp_path, text: str, message: str) -> None:
    from hfh_embed.verbs.compress import read_frequencies

    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_frequencies(tmp_path / "f.csv", 4)


def test_compare_shows_methods_at_equal_bytes(tmp_path, capsys) -> None:
    np.save(tmp_path / "t.npy", ROWS)
    document = _json(capsys, "compare", str(tmp_path / "t.npy"), "--ratios", "8", "--queries", "100")
    assert {row["method"] for row in document["methods"]} == {"hfh compress", "faiss PQ", "faiss RQ", "few-bit rows"}
    assert all(row["nbytes"] * 8 <= ROWS.nbytes for row in document["methods"])
    assert [row["method"] for row in document["left_out"]] == ["faiss OPQ", "faiss LSQ"]
    assert main(["compare", str(tmp_path / "t.npy"), "--ratios", "40"]) == 0
    text = capsys.readouterr().out
    assert "recall@10" in text
    assert "left out: few-bit rows at 1/40: no size of it fits" in text
    assert "left out: faiss LSQ: can take hours" in text
    for wrong in ("0.5", "eight", "8,,9"):
        assert "--ratios is" in _refused(capsys, "compare", str(tmp_path / "t.npy"), "--ratios", wrong)


def test_the_smallest_table_with_a_cosine(tmp_path, capsys) -> None:
    np.save(tmp_path / "t.npy", ROWS)
    out = str(tmp_path / "t.hfh")
    document = _json(capsys, "compress", str(tmp_path / "t.npy"), "-o", out, "--min-cosine", "0.9")
    assert document["ratio"] > 4
    assert "expected" in document["metadata"]
    found = _json(capsys, "eval", out, "--against", str(tmp_path / "t.npy"), "--min-cosine", "0.9")
    assert 0 < found["rate_distortion_bound"] < found["relative_error"]
    assert found["recall_at_1"] > 0.1


def test_nan_rows_are_refused(tmp_path, capsys) -> None:
    rows = ROWS.copy()
    rows[5, 1] = np.nan
    np.save(tmp_path / "t.npy", rows)
    assert "rows 5 hold NaN" in _refused(
        capsys, "compress", str(tmp_path / "t.npy"), "-o", str(tmp_path / "t.hfh"), "--ratio", "8"
    )


def test_a_read_only_folder_is_told(dense, tmp_path) -> None:
    """Run as an ordinary user, because root may write anywhere."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    code = f"""
import os, shutil, sys
if os.geteuid() == 0:
    shutil.copy({dense!r}, {str(tmp_path / "d.txt")!r})
    os.chmod({str(tmp_path / "d.txt")!r}, 0o644)
    from hfh_embed.cli import main
    import faiss, hfh_embed.codec, hfh_embed.tables
    os.setgid(65534); os.setuid(65534)
from hfh_embed.cli import main
sys.exit(main(["compress", {str(tmp_path / "d.txt")!r} if os.path.exists({str(tmp_path / "d.txt")!r}) else {dense!r},
               "-o", {str(folder / "x.hfh")!r}, "--ratio", "8"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "may not be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_leaves_no_half_written_file(tmp_path) -> None:
    np.save(tmp_path / "t.npy", np.random.default_rng(0).normal(size=(60_000, 96)).astype(np.float32))
    (tmp_path / "out").mkdir()
    command = ["compress", str(tmp_path / "t.npy"), "-o", str(tmp_path / "out" / "t.hfh"), "--ratio", "8"]
    with subprocess.Popen(
        [sys.executable, "-m", "hfh_embed.cli", *command],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a job in the background inherits that it is ignored
    ) as process:
        deadline = time.monotonic() + 60  # it is at work once it has loaded faiss
        while "faiss" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in error
    assert "Traceback" not in error
    assert not list((tmp_path / "out").iterdir())


def test_an_unknown_verb_or_flag_is_wrong_usage(capsys) -> None:
    for arguments in (["melt"], ["plan", "--colour"], []):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    capsys.readouterr()


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(hfh_embed.HFHError):
        main(["plan", "--ratio", "10", "--debug"])


def test_a_closed_pipe_is_no_error(snapshot) -> None:
    shell = f"{sys.executable} -m hfh_embed.cli lookup {snapshot} words $(seq 0 1500) | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", shell], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_starting_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import hfh_embed.cli, sys; sys.exit(any(m in sys.modules for m in ('torch', 'faiss', 'fastapi', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "number"), [("30522", 30522), ("200k", 200_000), ("1.5M", 1_500_000), ("1B", 10**9), ("1_000", 1000)]
)
def test_whole_numbers(text: str, number: int) -> None:
    assert whole_number(text) == number
    for wrong in ("", "x", "-5", "1.5", "0", "1e3"):
        with pytest.raises(Exception, match="not a whole number"):
            whole_number(wrong)


def test_bytes_text() -> None:
    assert [bytes_text(n) for n in (0, 999, 1234, 2.5e9, 3e15)] == ["0 B", "999 B", "1.23 kB", "2.50 GB", "3000.00 TB"]


def test_rows_that_compress_must_not_guess_about(tmp_path, capsys) -> None:
    dense, out = str(tmp_path / "t.npy"), str(tmp_path / "t.hfh")
    rows = ROWS.copy()
    rows[5, 1], rows[7, 0], rows[9] = np.nan, -np.inf, 0
    np.save(dense, rows)
    assert "rows 5, 7 hold NaN or infinite" in _refused(capsys, "compress", dense, "-o", out, "--ratio", "8")
    assert main(["compress", dense, "-o", out, "--ratio", "8", "--nan", "zero"]) == 0
    found = hfh_embed.open(out)["t"].lookup(np.arange(len(rows)))
    assert not found[[5, 7, 9]].any()
    assert np.delete(found, [5, 7, 9], axis=0).any(axis=1).all()
    np.save(dense, np.ones((40, 8), dtype=np.int32))
    assert "holds int32; give floats" in _refused(capsys, "compress", dense, "-o", out, "--ratio", "8")
    np.save(dense, ROWS)
    assert main(["compress", dense, "-o", out, "--ratio", "8", "--padding-id", "3"]) == 0
    assert not hfh_embed.open(out)["t"].lookup([3]).any()
    assert "padding_id" in _refused(capsys, "compress", dense, "-o", out, "--ratio", "8", "--padding-id", "2000000")


@pytest.mark.parametrize("shape", [(1, 8), (3, 8), (400, 1), (5, 40)])
def test_small_and_narrow_tables_are_compressed_or_the_nearest_ratio_is_named(tmp_path, capsys, shape) -> None:
    dense, out = str(tmp_path / "t.npy"), str(tmp_path / "t.hfh")
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows[:, -1] = 2.5  # a constant column
    np.save(dense, rows)
    message = ""
    if main(["compress", dense, "-o", out, "--ratio", "4"]):
        message = capsys.readouterr().err
        assert "the nearest ratio that can be met is" in message
        ratio = message.split("the nearest ratio that can be met is ")[1].split()[0]
        assert main(["compress", dense, "-o", out, "--ratio", ratio]) == 0
    assert hfh_embed.open(out)["t"].lookup(np.arange(shape[0])).shape == shape
