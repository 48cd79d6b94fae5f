import struct

import numpy as np
import pytest
import safetensors.numpy
import torch

from hfh_embed.errors import InputError
from hfh_embed.tables import read_table

ROWS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def _check(table, rows=ROWS) -> None:
    assert np.array_equal(np.asarray(table.rows, dtype=np.float32), rows)


def test_npy(tmp_path) -> None:
    np.save(tmp_path / "words.npy", ROWS)
    table = read_table(tmp_path / "words.npy")
    _check(table)
    assert table.name == "words"
    assert isinstance(table.rows, np.memmap)


def test_npz(tmp_path) -> None:
    np.savez(tmp_path / "one.npz", words=ROWS, other=np.zeros(3))
    table = read_table(tmp_path / "one.npz")
    _check(table)
    assert table.name == "words"
    np.savez(tmp_path / "two.npz", a=ROWS, b=ROWS)
    with pytest.raises(InputError, match="name one with --tensor: a 7 x 3, b 7 x 3"):
        read_table(tmp_path / "two.npz")
    _check(read_table(tmp_path / "two.npz", "b"))


def test_safetensors_with_its_vocabulary(tmp_path) -> None:
    tensors = {"model.embed.weight": ROWS, "position_embeddings": ROWS, "w": ROWS, "b": np.zeros(3, dtype=np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "m.safetensors")
    (tmp_path / "vocab.txt").write_text("\n".join("abcdefg") + "\n")
    table = read_table(tmp_path / "m.safetensors")
    _check(table)
    assert table.name == "model.embed.weight"
    assert table.vocabulary == list("abcdefg")


def test_bfloat16(tmp_path) -> None:
    rows = torch.from_numpy(ROWS).bfloat16()
    raw = rows.view(torch.int16).numpy().tobytes()
    header = b'{"e":{"dtype":"BF16","shape":[7,3],"data_offsets":[0,42]}}'
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + raw)
    _check(read_table(tmp_path / "m.safetensors"), rows.float().numpy())
    torch.save({"e": rows}, tmp_path / "m.pt")
    _check(read_table(tmp_path / "m.pt"), rows.float().numpy())


def test_torch_checkpoints(tmp_path) -> None:
    model = torch.nn.ModuleDict({"words": torch.nn.Embedding(7, 3), "out": torch.nn.Linear(3, 2)})
    torch.save({"state": model.state_dict(), "step": 7}, tmp_path / "m.pt")
    table = read_table(tmp_path / "m.pt", "state.words.weight")
    assert np.array_equal(table.rows, model["words"].weight.detach().numpy())
    with pytest.raises(InputError, match=r"2 tables.*state\.words\.weight 7 x 3"):
        read_table(tmp_path / "m.pt")
    torch.save(model, tmp_path / "code.pt")
    with pytest.raises(InputError, match="save a state_dict"):
        read_table(tmp_path / "code.pt")


@pytest.mark.parametrize("header", ["", "7 3\n"])
def test_word_vectors(tmp_path, header: str) -> None:
    keys = ["a", "the", "käse", "New York", "1", "", "g"]
    lines = [f"{key} {' '.join(repr(float(x)) for x in row)}" for key, row in zip(keys, ROWS, strict=True)]
    (tmp_path / "glove.txt").write_text(header + "\n".join(lines) + "\n")
    table = read_table(tmp_path / "glove.txt")
    _check(table)
    assert table.vocabulary == keys


@pytest.mark.parametrize("fixed", [True, False])
def test_parquet(tmp_path, fixed: bool) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    kind = pa.list_(pa.float32(), 3) if fixed else pa.list_(pa.float32())
    pq.write_table(pa.table({"id": range(7), "row": pa.array(ROWS.tolist(), kind)}), tmp_path / "t.parquet")
    _check(read_table(tmp_path / "t.parquet"))
    with pytest.raises(InputError, match="no list column 'id'"):
        read_table(tmp_path / "t.parquet", "id")
    ragged = pa.table({"row": [[1.0], [1.0, 2.0]]})
    pq.write_table(ragged, tmp_path / "r.parquet")
    with pytest.raises(InputError, match="differ in length"):
        read_table(tmp_path / "r.parquet")


def test_a_vocabulary_file(tmp_path) -> None:
    np.save(tmp_path / "t.npy", ROWS)
    (tmp_path / "keys.txt").write_text("\n".join("abcdefg"))
    assert read_table(tmp_path / "t.npy", vocabulary=tmp_path / "keys.txt").vocabulary == list("abcdefg")
    (tmp_path / "keys.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="2 keys for 7 rows"):
        read_table(tmp_path / "t.npy", vocabulary=tmp_path / "keys.txt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.npy", b"nonsense", "not a readable .npy"),
        ("t.npy", b"", "not a readable .npy"),
        ("t.npz", b"PK nonsense", "not a readable .npz"),
        ("t.safetensors", b"nonsense", "header"),
        ("t.pt", b"nonsense", "save a state_dict"),
        ("t.parquet", b"nonsense", "not a readable parquet"),
        ("t.txt", b"", "no word vectors"),
        ("t.txt", b"a 1 2\nb 1\n", "line 2 has 1 numbers"),
        ("t.txt", b"a 1 2\nb 1 x\n", "line 2"),
        ("t.txt", b"a 1 2\na 1 2\n", "line 2: key 'a' appears a second time"),
        ("t.txt", b"\xff\xfe\x00", "UTF-8"),
        ("t.csv", b"1,2", "'.csv'; readable are .npy"),
        ("t", b"1,2", "'nothing'"),
    ],
)
def test_unreadable_files_get_a_sentence(tmp_path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_table(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("rows", "message"), [(np.ones(3), "shape"), (np.ones((0, 3)), "shape"), (np.ones((2, 3), int), "int64")]
)
def test_arrays_that_are_no_tables_are_refused(tmp_path, rows, message: str) -> None:
    np.save(tmp_path / "t.npy", rows)
    with pytest.raises(InputError, match=message):
        read_table(tmp_path / "t.npy")


def test_objects_are_never_unpickled(tmp_path) -> None:
    np.save(tmp_path / "t.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match="not a readable"):
        read_table(tmp_path / "t.npy")


def test_missing_files_and_folders(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "no.npy")
    with pytest.raises(InputError, match="has no shards"):
        read_table(tmp_path)
