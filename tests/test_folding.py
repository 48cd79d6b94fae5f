"""Rows of the overlay in the next snapshot."""

import asyncio
import json

import numpy as np
import pytest

import hfh_embed
from hfh_embed.cli import main
from hfh_embed.errors import InputError
from hfh_embed.folding import fold
from tests.service.redis_server import redis_server
from tests.service.test_overlay_redis import replica


def test_rows_are_written_over_the_dense_ones_and_the_input_stays(tmp_path) -> None:
    dense = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    before = dense.copy()
    np.save(tmp_path / "dense.npy", dense)
    mapped = np.load(tmp_path / "dense.npy", mmap_mode="r")
    ids, rows = np.array([0, 49, 7]), np.arange(18, dtype=np.float32).reshape(3, 6)
    expected = before.copy()
    expected[ids] = rows
    for given in (dense, mapped, np.asfortranarray(dense), dense.astype(np.float16)):
        folded = fold(given, ids, rows)
        assert folded.dtype == given.dtype
        assert np.array_equal(folded, expected.astype(given.dtype))
    assert isinstance(fold(mapped, ids, rows), np.memmap)
    assert np.array_equal(dense, before)
    assert np.array_equal(np.load(tmp_path / "dense.npy"), before)
    assert fold(dense, np.empty(0, np.int64), np.empty((0, 0), np.float32)) is dense


def test_fresh_ids_make_the_table_grow_unless_they_leave_gaps() -> None:
    dense = np.ones((10, 2), np.float32)
    folded = fold(dense, np.array([10, 13, 3]), np.full((3, 2), 5, np.float32))
    assert folded[:, 0].tolist() == [1, 1, 1, 5, 1, 1, 1, 1, 1, 1, 5, 0, 0, 5]
    with pytest.raises(InputError, match="up to id 14"):
        fold(dense, np.array([10, 14]), np.ones((2, 2), np.float32))
    with pytest.raises(InputError, match="up to id 9,223,372"):
        fold(dense, np.array([2**63 - 1]), np.ones((1, 2), np.float32))
    with pytest.raises(InputError, match="3 entries"):
        fold(dense, np.array([1]), np.ones((1, 3), np.float32))


def test_compress_takes_the_rows_of_its_table_out_of_redis(tmp_path, capsys) -> None:
    dense = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    np.save(tmp_path / "users.npy", dense)
    command = ["compress", str(tmp_path / "users.npy"), "-o", str(tmp_path / "out.hfh"), "--ratio", "2", "--json"]

    async def write(url: str) -> int:
        async with replica(url) as overlay:
            await overlay.put("goods", np.array([3]), np.full((1, 8), 9, np.float32))
            return await overlay.put("users", np.array([3, 400]), np.full((2, 8), 2, np.float32))

    with redis_server(tmp_path) as server:
        sequence = asyncio.run(write(server.url))
        assert main([*command, "--overlay", server.url]) == 0
        assert json.loads(capsys.readouterr().out)["metadata"]["overlay_rows"] == "2"
        snapshot = hfh_embed.open(tmp_path / "out.hfh")
        assert snapshot.metadata["overlay_sequence"] == str(sequence)
        assert snapshot["users"].num_embeddings == 401
        assert np.allclose(snapshot["users"].lookup([3, 400]), 2, atol=0.1)
        assert np.abs(snapshot["users"].lookup([4]) - dense[4]).max() < 0.5
        keys = tmp_path / "keys.txt"
        keys.write_text("\n".join(f"key {number}" for number in range(400)))
        assert main([*command, "--overlay", server.url, "--vocabulary", str(keys)]) == 2
        assert "400 keys for 401 rows" in capsys.readouterr().err
        assert main([*command, "--overlay", server.url, "--name", "nobody"]) == 0
        assert hfh_embed.open(tmp_path / "out.hfh")["nobody"].num_embeddings == 400
    assert main([*command, "--overlay", server.url]) == 2
    assert "does not answer" in capsys.readouterr().err
    assert main([*command, "--overlay", "nonsense"]) == 2
    assert "no scheme" in capsys.readouterr().err
