"""The laboratory's command works on the sample files, goes on where it was stopped, and refuses what it does not know."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality.clicks import ClickTask
from benchmarks.quality.data import DATA, Size, load_clicks, load_pairs, load_sequences
from benchmarks.quality.methods import FULL, METHODS, TAUGHT, TooSmallError
from benchmarks.quality.pairs import PairTask
from benchmarks.quality.report import Cells, summary
from benchmarks.quality.teaching import Taught
from benchmarks.quality.training import learn

ROOT = Path(__file__).parent.parent.parent
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is missing")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.quality", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@needs_data
@pytest.mark.slow
def test_quick_runs_every_data_set_and_repeats_nothing(tmp_path: Path) -> None:
    command = ("--quick", "--folder", str(tmp_path), "--methods", "full table", "hfh line")
    done = run(*command)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "quality.jsonl").read_text().splitlines()]
    assert {(row["dataset"], row["method"]) for row in rows} == {
        (dataset, method)
        for dataset in ("completejourney", "amazon_book", "beauty")
        for method in ("full table", "hfh line")
    }
    for row in rows:
        assert row["reached"] >= (1 if row["method"] == "full table" else 100) - 0.01, row
        assert row["peak_bytes"] > 0 and row["train_bytes"] > row["nbytes"] and row["seconds"] > 0
        assert all(0 <= value <= 1 for value in row["test"].values())
    assert "| **hfh line** | 0." in (tmp_path / "results.md").read_text()
    assert (tmp_path / "quality_beauty.svg").exists()
    again = run(*command)
    assert again.returncode == 0 and "epoch" not in again.stdout, "a run was repeated"


@needs_data
def test_splits_are_the_stored_ones() -> None:
    clicks = load_clicks(Size.SAMPLE)
    assert list(clicks.splits) == ["train", "valid", "test"] and len(clicks.fields) == 21
    for rows in clicks.splits.values():
        assert rows.labels.mean() == 0.5 and len(rows.ids) == len(rows.trips)
    pairs = load_pairs(Size.SAMPLE)
    with np.load(DATA / "amazon_book" / "sample.npz") as stored:
        assert [len(pairs.splits[name]) for name in pairs.splits] == np.bincount(stored["split"]).tolist()
    sequences = load_sequences(Size.SAMPLE)
    assert len(sequences.offsets) == 1001 and sequences.items.min() == 1
    assert sequences.counts["item"].sum() == len(sequences.items) - 2 * 1000


def test_missing_data_and_unknown_tables_are_told(tmp_path: Path) -> None:
    assert (
        "give --data FOLDER"
        in run("--quick", "--data", str(tmp_path), "--folder", str(tmp_path), "--datasets", "beauty").stderr
    )
    refused = run("everything")
    assert refused.returncode == 2 and "no table is named 'everything'" in refused.stderr


def test_the_rate_is_picked_on_validation_and_spread_decides_who_wins() -> None:
    def row(method: str, seed: int, rate: float, valid: float, test: float) -> dict[str, object]:
        key = {"dataset": "beauty", "method": method, "ratio": 1 if method == "full table" else 100, "seed": seed}
        return key | {"rate": rate, "valid": valid, "test": {"ndcg": test, "hr": test}}

    rows = [row("full table", 0, 0.01, 0.5, 0.5), row("ROBE", 0, 0.1, 0.2, 0.9), row("ROBE", 0, 0.01, 0.3, 0.2)]
    rows += [row("hfh line", seed, 0.01, 0.3, 0.4 + 0.01 * seed) for seed in range(3)]
    cells = Cells(rows)
    robe = cells.figure("beauty", "ROBE", 100, "ndcg")
    assert robe is not None and robe.values == (0.2,)
    assert cells.spread("beauty", "ndcg") == pytest.approx(0.01)
    assert "**wins**, +0.2100 (1 seed)" in summary(cells)
    after = [row("hfh after training", 0, 0.1, 0.4, 0.7), row("hfh after training", 0, 0.01, 0.3, 0.6)]
    kept = Cells(rows + after).figure("beauty", "hfh after training", 100, "ndcg")
    assert kept is not None and kept.values == (0.6,), "it is the full table's rate that decides"


@needs_data
def test_a_taught_model_sees_labels_half_way_to_its_teachers() -> None:
    torch.manual_seed(0)
    task = ClickTask(load_clicks(Size.SAMPLE))
    teacher, pupil = (task.model(METHODS[FULL](task.shapes, 1, seed)) for seed in (0, 1))
    generator = np.random.default_rng(0)
    ids, labels = next(task.batches(generator))
    loss = Taught(task, teacher).loss(pupil, (ids, labels), generator)
    wanted = (labels + torch.sigmoid(teacher(ids))) / 2
    assert torch.allclose(loss, torch.nn.functional.binary_cross_entropy_with_logits(pupil(ids), wanted))
    assert not any(p.grad is not None for p in teacher.parameters())
    with pytest.raises(TooSmallError, match="only clicks"):
        learn(PairTask(load_pairs(Size.SAMPLE)), next(iter(TAUGHT)), 100, 0.01, 0)
