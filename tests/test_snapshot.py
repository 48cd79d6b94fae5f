"""The file: golden files, round trips, and everything hostile."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import hfh_embed
from hfh_embed.container import encode_header, replacing
from hfh_embed.errors import DamagedError, HFHError, InputError, SnapshotError, TableNotFoundError
from hfh_embed.kernels import backends
from hfh_embed.layout import ArraySpec
from hfh_embed.snapshot import Snapshot
from tests.builders import CASES, N, snapshot_of

GOLDEN = Path(__file__).parent / "golden" / "format1"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tables.hfh"
    keys = [f"key {number}" for number in range(N)]
    snapshot_of(*CASES["exact"], vocabularies={"users": keys}, metadata={"made by": "a test"}).save(path)
    return path


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.hfh")), ids=lambda path: path.stem)
def test_golden_files_are_read_for_ever(path: Path) -> None:
    facts = json.loads(path.with_suffix(".json").read_text())
    hfh_embed.verify(path)
    with hfh_embed.open(path) as snapshot:
        assert snapshot.version == facts["version"]
        rows, expected = snapshot["users"].lookup(facts["ids"]), np.array(facts["rows"])
    assert (np.abs(rows - expected) <= 1e-5 * (np.abs(expected).max(axis=1, keepdims=True) + 1e-3)).all()


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_table_comes_back(case: str, tmp_path: Path) -> None:
    made = snapshot_of(*CASES[case])
    made.save(tmp_path / "a.hfh")
    with hfh_embed.open(tmp_path / "a.hfh") as opened:
        assert opened.spec == made.spec
        assert opened.version == made.version
        assert opened["users"].lookup([0, 5, N - 1]).tobytes() == made["users"].lookup([0, 5, N - 1]).tobytes()
        opened.save(tmp_path / "b.hfh")
    assert (tmp_path / "a.hfh").read_bytes() == (tmp_path / "b.hfh").read_bytes()


def test_the_files_sizes_agree_to_the_byte(file: Path) -> None:
    info = hfh_embed.inspect(file)
    snapshot = hfh_embed.open(file)
    assert info.file_nbytes == file.stat().st_size
    assert info.file_nbytes == info.header_nbytes + info.vocabulary_nbytes + snapshot.nbytes
    assert snapshot.nbytes == sum(count for _, count in snapshot.parts())
    assert info.header_nbytes % 64 == 0


def test_any_safetensors_reader_opens_it(file: Path) -> None:
    tensors = safetensors.numpy.load_file(file)
    snapshot = hfh_embed.open(file)
    assert (tensors["pool/pool/values"] == snapshot.arrays["pool/pool/values"]).all()
    assert bytes(tensors["vocabulary/users/bytes"]).startswith(b"key 0key 1")


def test_keys_and_metadata_come_back(file: Path) -> None:
    snapshot = hfh_embed.open(file)
    assert snapshot.metadata == {"made by": "a test"}
    assert snapshot["users"].ids_of(["key 1002", "key 0"]).tolist() == [1002, 0]
    with pytest.raises(TableNotFoundError, match="there are users"):
        snapshot["nobody"]


def test_opening_reads_hardly_anything(tmp_path: Path) -> None:
    from hfh_embed.budget import plan
    from tests.builders import random_arrays

    spec = plan({"t": (20_000_000, 64)}, 100)
    path = tmp_path / "large.hfh"
    Snapshot(spec, random_arrays(spec)).save(path)
    began = time.perf_counter()
    with hfh_embed.open(path) as snapshot:
        seconds = time.perf_counter() - began
        assert snapshot["t"].lookup([0, 19_999_999]).any()
    assert seconds < 0.5, f"opening {path.stat().st_size} bytes took {seconds} s"


def test_one_flipped_bit_is_named_by_verify(file: Path) -> None:
    hfh_embed.verify(file)
    raw = bytearray(file.read_bytes())
    start = hfh_embed.inspect(file).header_nbytes
    raw[start + 100] ^= 4
    file.write_bytes(raw)
    hfh_embed.open(file).close()  # opening does not read the tensors
    with pytest.raises(DamagedError, match="pool/pool/values"):
        hfh_embed.verify(file)


def test_exact_ids_that_do_not_ascend_are_named_by_verify(tmp_path: Path) -> None:
    snapshot = snapshot_of(*CASES["exact"])
    arrays = dict(snapshot.arrays)
    arrays["table/users/exact.ids"] = arrays["table/users/exact.ids"][::-1].copy()
    Snapshot(snapshot.spec, arrays).save(tmp_path / "x.hfh")
    assert hfh_embed.open(tmp_path / "x.hfh")["users"].lookup(np.arange(N)).shape == (N, 40)
    with pytest.raises(DamagedError, match="do not ascend"):
        hfh_embed.verify(tmp_path / "x.hfh")


@pytest.mark.parametrize(
    ("case", "name", "damage", "message"),
    [
        ("levels-codes", "levels.codes", lambda a: np.zeros_like(a), "as many ids"),
        ("levels-codes", "levels.codes", lambda a: np.full_like(a, 255), "as many ids"),
        ("levels-alone", "levels.codes", lambda a: a[::-1].copy(), "as many ids"),
        ("levels-ids", "levels.ids", lambda a: a[::-1].copy(), "do not ascend"),
        ("levels-ids", "levels.ids", lambda a: np.concatenate((a[3:6], a[3:])), "two levels"),
        ("levels-ids", "levels.ids", lambda a: np.append(a[:-1], a.dtype.type(65_535)), "outside the table"),
    ],
)
def test_a_damaged_index_of_levels_is_named_by_verify_and_reads_nothing_outside(
    tmp_path: Path, case: str, name: str, damage, message: str
) -> None:
    snapshot = snapshot_of(*CASES[case])
    arrays = dict(snapshot.arrays)
    arrays[f"table/users/{name}"] = damage(arrays[f"table/users/{name}"])
    Snapshot(snapshot.spec, arrays).save(tmp_path / "x.hfh")
    for kernels in backends():
        assert hfh_embed.open(tmp_path / "x.hfh", kernels=kernels)["users"].lookup(np.arange(N)).shape == (N, 40)
    if (damage(arrays[f"table/users/{name}"]) != snapshot.arrays[f"table/users/{name}"]).any():
        with pytest.raises(DamagedError, match=message):
            hfh_embed.verify(tmp_path / "x.hfh")


def _refused(path: Path) -> str:
    """The sentence with which a file is refused, by every way to open it."""
    with pytest.raises(SnapshotError) as caught:
        hfh_embed.open(path)
    for use in (hfh_embed.inspect, hfh_embed.verify):
        with pytest.raises(SnapshotError):
            use(path)
    return str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 2000, -1, -1000])
def test_truncated_files_are_refused(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    assert "truncated" in _refused(file) or "header" in _refused(file)


def test_a_tail_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")
    assert "tail" in _refused(file)


def _with_header(path: Path, change) -> None:
    """Rewrite a file's header by changing its parsed form."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    document = json.loads(raw[8 : 8 + length])
    changed = change(document)
    header = changed if isinstance(changed, bytes) else json.dumps(document).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])


def _entry(document, field, value):
    document["pool/pool/values"][field] = value


def _spec(document, change):
    spec = json.loads(document["__metadata__"]["spec"])
    change(spec)
    document["__metadata__"]["spec"] = json.dumps(spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["__metadata__"].update(format_version="2"), "format version"),
        (lambda d: d["__metadata__"].pop("format"), "not a snapshot"),
        (lambda d: d.update(__metadata__={"a": 1}), "metadata"),
        (lambda d: d.update(__metadata__=[]), "metadata"),
        (lambda d: d["__metadata__"].pop("sha256"), "sha256"),
        (lambda d: d["__metadata__"].update(sha256="{}"), "checksum"),
        (lambda d: d["__metadata__"].update(spec="[" * 100_000), "spec"),
        (lambda d: _entry(d, "shape", [2**62, 2**62]), "shape needs"),
        (lambda d: _entry(d, "shape", [-1]), "impossible"),
        (lambda d: _entry(d, "shape", [True]), "impossible"),
        (lambda d: _entry(d, "shape", [1.0]), "impossible"),
        (lambda d: _entry(d, "dtype", "Q9"), "dtype"),
        (lambda d: _entry(d, "data_offsets", [64, 2432]), "hole or an overlap"),
        (lambda d: _entry(d, "data_offsets", [10, 5]), "impossible"),
        (lambda d: _entry(d, "extra", 1), "exactly dtype"),
        (lambda d: d.update({"../../etc/passwd": d.pop("pool/pool/values")}), "not what the description needs"),
        (lambda d: _spec(d, lambda s: s["tables"][0].update(name="../x")), "not usable"),
        (lambda d: _spec(d, lambda s: s["tables"][0].update(num_embeddings=2**70)), "num_embeddings"),
        (
            lambda d: _spec(d, lambda s: s["tables"][0].update(num_embeddings=2**60, exact=None)),
            "impossible|malformed|not what",
        ),
        (lambda d: _spec(d, lambda s: s["tables"][0].update(surprise=1)), "malformed"),
        (lambda d: _spec(d, lambda s: s["tables"][0]["shared"].update(key="xyz")), "hexadecimal"),
        (lambda d: _spec(d, lambda s: s["tables"][0]["shared"].update(num_hashes=2**40)), "num_hashes"),
        (lambda d: _spec(d, lambda s: s["pools"][0].update(slots=512 * 10**9)), "not what the description needs"),
        (lambda d: _spec(d, lambda s: s["pools"].clear()), "no pool"),
        (lambda d: _spec(d, lambda s: s.pop("tables")), "malformed"),
        (lambda d: b"{" * 50_000, "not valid JSON"),
        (lambda d: b'{"a":NaN}', "NaN"),
        (lambda d: b'{"a":1,"a":1}', "twice"),
        (lambda d: b"[]", "not a JSON object"),
        (lambda d: b"\xff\xfe", "not valid JSON"),
    ],
)
def test_hostile_headers_are_refused(file: Path, change, message: str) -> None:
    _with_header(file, change)
    with pytest.raises(SnapshotError, match=message):
        hfh_embed.open(file)
    _refused(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda levels: levels.update(each=[]), "0 levels"),
        (lambda levels: levels.update(each=[[1, 4, 8, 8]] * 16), "16 levels"),
        (lambda levels: levels.update(each=[[N + 1, 4, 8, 8]]), "ids in levels"),
        (lambda levels: levels.update(each=[[5, 4, 41, 8]]), "latent row"),
        (lambda levels: levels.update(each=[[5, 3, 8, 8]]), "bits"),
        (lambda levels: levels.update(each=[[5, 4, 8, 2]]), "map"),
        (lambda levels: levels.update(each=[[2**62, 4, 8, 8], [2**62, 4, 8, 8]]), "ids of all levels"),
        (lambda levels: levels.update(each=[[5, 4, 8, 8, 1]]), "malformed"),
        (lambda levels: levels.update(each=[[5, 4, True, 8]]), "dim"),
        (lambda levels: levels.update(each={}), "malformed"),
        (lambda levels: levels.update(index="anywhere"), "malformed"),
        (lambda levels: levels.update(adds=1), "adds"),
        (lambda levels: levels.update(index="ids"), "not what the description needs"),
    ],
)
def test_hostile_levels_are_refused(tmp_path: Path, change, message: str) -> None:
    snapshot_of(*CASES["levels-codes"]).save(tmp_path / "x.hfh")
    _with_header(tmp_path / "x.hfh", lambda d: _spec(d, lambda s: change(s["tables"][0]["levels"])))
    with pytest.raises(SnapshotError, match=message):
        hfh_embed.open(tmp_path / "x.hfh")
    _refused(tmp_path / "x.hfh")


def test_a_plain_safetensors_file_is_refused(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"a": np.zeros(3, dtype=np.float32)}, tmp_path / "a.safetensors")
    assert "not a snapshot" in _refused(tmp_path / "a.safetensors")


@given(st.binary(max_size=300))
def test_random_files_are_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("random") / "x.hfh"
    path.write_bytes(raw)
    _refused(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_files_never_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("mutated") / "x.hfh"
    raw = bytearray(data.draw(st.sampled_from(sorted(GOLDEN.glob("*.hfh")))).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.one_of(st.integers(0, 4000), st.integers(0, len(raw) - 1))) % len(raw)
        raw[place] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        with hfh_embed.open(path) as snapshot:
            for table in snapshot.values():
                table.lookup([0, table.num_embeddings - 1])
                if table.vocabulary is not None:
                    table.vocabulary.find(["key 7"])
    except HFHError:
        pass


def test_pools_lie_on_cache_lines(file: Path) -> None:
    opened = hfh_embed.open(file)
    assert opened.arrays["pool/pool/values"].ctypes.data % 64 == 0
    arrays = dict(opened.arrays)
    room = np.empty(arrays["pool/pool/values"].nbytes + 128, dtype=np.uint8)
    start = -room.ctypes.data % 64 + 1
    crooked = room[start : start + arrays["pool/pool/values"].nbytes]
    crooked[:] = arrays["pool/pool/values"]
    arrays["pool/pool/values"] = crooked
    moved = Snapshot(opened.spec, arrays)
    assert moved.arrays["pool/pool/values"].ctypes.data % 64 == 0
    assert moved["users"].lookup(np.arange(N)).tobytes() == opened["users"].lookup(np.arange(N)).tobytes()


def test_a_missing_array_is_named() -> None:
    snapshot = snapshot_of(*CASES["words-1"])
    with pytest.raises(SnapshotError, match=r"shared\.scale' is missing"):
        Snapshot(snapshot.spec, {name: array for name, array in snapshot.arrays.items() if "scale" not in name})


def test_a_failing_write_leaves_the_old_file(file: Path) -> None:
    old = file.read_bytes()
    with pytest.raises(KeyboardInterrupt), replacing(file) as half:  # noqa: PT012
        half.write(b"half")
        raise KeyboardInterrupt
    assert file.read_bytes() == old
    assert os.listdir(file.parent) == [file.name]


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"), replacing(tmp_path / "pipe"):
        pass
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "nowhere" / "x.hfh"):
        pass
    assert caught.value.filename == str(tmp_path / "nowhere" / "x.hfh")


def test_a_full_disk_leaves_the_old_file(file: Path) -> None:
    old = file.read_bytes()
    code = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
import hfh_embed
try:
    hfh_embed.open({str(file)!r}).save({str(file)!r})
except OSError as error:
    sys.exit(7)
"""
    assert resource.RLIM_INFINITY is not None
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
    assert file.read_bytes() == old
    assert os.listdir(file.parent) == [file.name]


def test_a_killed_write_leaves_the_old_file(file: Path) -> None:
    old = file.read_bytes()
    code = f"""
import sys, time
from pathlib import Path
from hfh_embed.container import replacing
with replacing(Path({str(file)!r})) as half:
    half.write(b"half")
    half.flush()
    print("writing", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    assert file.read_bytes() == old


def test_headers_hold_what_they_are_given() -> None:
    header = encode_header({"a": ArraySpec(np.dtype("<f4"), (2, 3))}, {"k": "ü"})
    assert len(header) % 64 == 0
    assert json.loads(header[8:])["a"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    snapshot_of(*CASES["words-1"]).save(tmp_path / "new.hfh")
    assert (tmp_path / "new.hfh").stat().st_mode == (tmp_path / "other").stat().st_mode
