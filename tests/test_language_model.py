"""The language model example, on the sample text and on small vocabularies."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hfh_embed.errors import HFHError, RatioError, SpecError

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import train_language_model as example
from language_model import model as models
from language_model import report, tables, text, training

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "train_language_model.py"
DATA = ROOT.parent / "shared" / "datasets" / "novels100"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is missing")

LINES = ["The cat sat on the mat.", "", "the dog's well-known Cat ran;", "a dog ran on and on."] * 60


@pytest.fixture
def corpus() -> text.Corpus:
    """Some 30 types, with a tail that the text does not have."""
    made = text._words(LINES, ["a cat never ran ."] * 30)
    more = tuple(f"rare{number}" for number in range(300))
    return replace(made, words=made.words + more, counts=np.concatenate((made.counts, np.ones(300, dtype=np.int64))))


def settings(**choices: object) -> training.Settings:
    small = {"dim": 32, "hidden": 16, "streams": 4, "length": 8, "tokens": 960, "always": 16, "drawn": 16}
    return training.Settings(**{**small, "valid_tokens": 64, "curve_tokens": 64, "curve_points": 2, **choices})


def test_ids_are_ranks_and_lines_end(corpus: text.Corpus) -> None:
    assert corpus.words[:2] == ("<unk>", "<eos>")
    assert (np.diff(corpus.counts[2:]) <= 0).all()
    first = [corpus.words[number] for number in corpus.train[:8]]
    assert first == ["the", "cat", "sat", "on", "the", "mat", ".", "<eos>"]
    assert {"dog's", "well-known"} <= set(corpus.words)
    assert corpus.words[corpus.valid[2]] == "<unk>"
    assert corpus.counts[:2].tolist() == [0, 180]


def test_what_was_read_is_kept(tmp_path: Path) -> None:
    (tmp_path / "sample.txt").write_text("\n".join(LINES))
    first = text.load(tmp_path, sample=True, kept=tmp_path / "kept")
    (tmp_path / "sample.txt").write_text("")
    again = text.load(tmp_path, sample=True, kept=tmp_path / "kept")
    assert again.words == first.words
    assert (again.train == first.train).all() and (again.counts == first.counts).all()


def test_too_short_a_text_is_refused(corpus: text.Corpus) -> None:
    with pytest.raises(ValueError, match="ask for fewer tokens"):
        text.streams(corpus.valid, 4, len(corpus.valid))


def test_pieces_are_ranked_and_spell_the_text(tmp_path: Path) -> None:
    (tmp_path / "sample.txt").write_text("\n".join(LINES))
    pieces = text.load(tmp_path, sample=True, bpe=300)
    assert (np.diff(pieces.counts[2:]) <= 0).all()
    spelled = "".join(pieces.words[number] for number in pieces.valid).split("<eos>")[0]
    assert spelled.replace("Ġ", " ").strip() == LINES[0]


def test_tiled_cross_entropy_is_that_of_all_logits(corpus: text.Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training.Run(settings(method="line", ratio=4), corpus, Path("nowhere"))
    size = len(corpus.words)
    after, targets = torch.randn(21, 32), torch.randint(size, (21,))
    every = torch.arange(size)
    logits = (after @ run.model.words.rows(every).T + run.model.bias(every)).detach()
    for tile in (1, 7, 64, size, 2 * size):
        monkeypatch.setattr(models, "TILE", tile)
        mine = models.cross_entropy(run.model, after, targets)
        torch.testing.assert_close(mine, F.cross_entropy(logits, targets, reduction="none"), rtol=1e-5, atol=1e-5)


def test_candidates_estimate_the_whole_denominator(corpus: text.Corpus) -> None:
    run = training.Run(settings(method="dense"), corpus, Path("nowhere"))
    ids = torch.randint(len(corpus.words), (5, 9))
    model = run.model

    def loss(always: int, seed: int) -> float:
        negatives = models.Negatives(corpus.counts, always, 64, seed)
        return float(negatives.loss(model, ids, None)[0].detach())

    rows = model.words.rows(ids[:, :-1].reshape(-1)).view(5, 8, -1)
    after, _ = model(rows, None)
    whole = float(models.cross_entropy(model, after, ids[:, 1:].reshape(-1)).mean())
    assert loss(len(corpus.words), 0) == pytest.approx(whole, rel=1e-5)
    estimates = [loss(16, seed) for seed in range(60)]
    assert np.std(estimates) > 0
    assert np.mean(estimates) == pytest.approx(whole, abs=0.02)


@pytest.mark.parametrize("method", ["dense", "line", "narrow2", "form:exact_share=0.3,exact_bits=4"])
def test_the_whole_softmax_trains_on_what_evaluation_measures(corpus: text.Corpus, method: str) -> None:
    run = training.Run(settings(method=method, ratio=2.0, drawn=0, rate=0.05, net_rate=0.05), corpus, Path("nowhere"))
    assert isinstance(run.softmax, models.Whole)
    ids = torch.randint(len(corpus.words), (5, 9))
    loss = float(run.softmax.loss(run.model, ids, None)[0].detach())
    rows = run.model.words.rows(ids[:, :-1].reshape(-1)).view(5, 8, -1)
    after, _ = run.model(rows, None)
    whole = models.cross_entropy(run.model, after, ids[:, 1:].reshape(-1)).mean()
    assert loss == pytest.approx(float(whole), rel=1e-5)
    losses = [run._step() for _ in range(30)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2, losses


def test_a_model_goes_on_writing_words_that_it_knows(corpus: text.Corpus) -> None:
    run = training.Run(settings(method="line", ratio=2.0), corpus, Path("nowhere"))
    written = [models.continuation(run.model, [3, 4], 20, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert written[0] == written[1] != written[2]
    assert len(written[0]) == 20
    assert all(0 <= word < len(corpus.words) for word in written[0])


def test_the_bias_begins_as_the_frequencies(corpus: text.Corpus) -> None:
    bias = models.RankBias(corpus.counts)(torch.arange(len(corpus.words))).detach().numpy()
    wanted = np.log((corpus.counts + 1) / (corpus.counts + 1).sum())
    assert np.abs(bias - wanted)[1:].mean() < 0.1


@pytest.mark.parametrize("method", [*tables.METHODS, "form:exact_share=0.3,exact_bits=4"])
def test_every_method_keeps_its_bytes_and_learns(corpus: text.Corpus, method: str) -> None:
    torch.manual_seed(0)
    ratio = 1.0 if method == "dense" else 3.0
    # A pool of lines and maps need some size to be the smaller.
    big = replace(
        corpus,
        words=corpus.words + tuple(f"none{n}" for n in range(4000)),
        counts=np.concatenate((corpus.counts, np.zeros(4000, dtype=np.int64))),
    )
    run = training.Run(settings(method=method, ratio=ratio, rate=0.02, net_rate=0.02), big, Path("nowhere"))
    assert run.model.words.nbytes <= 4 * 32 * len(big.words) / ratio
    rows = run.model.words.rows(torch.tensor([0, 5, 5, len(big.words) - 1]))
    assert rows.shape == (4, 32)
    assert torch.equal(rows[1], rows[2])
    losses = [run._step() for _ in range(30)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2, losses


def test_a_ratio_out_of_reach_names_what_to_do(corpus: text.Corpus) -> None:
    for method in ("narrow8", "banded"):
        with pytest.raises(RatioError, match="smaller"):
            tables.method_of(method).make(1000, 32, 1.0, 500.0, corpus.counts, 0)


@pytest.mark.parametrize(
    "method", ["nothing", "form:width=3", "form:exact_share=much", "form:signs=perhaps", "form:exact_share=2"]
)
def test_unknown_methods_are_refused(method: str) -> None:
    with pytest.raises(SpecError, match=r"exact_share|is not known|neither|method"):
        tables.method_of(method)


@pytest.mark.parametrize("method", ["dense", "line", "narrow1", "form:exact_share=0.3,exact_bits=4"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(corpus: text.Corpus, method: str, tmp_path: Path) -> None:
    chosen = settings(method=method, ratio=2.0)
    whole = training.Run(chosen, corpus, tmp_path / "whole").go()
    with pytest.raises(training.Stopped):
        training.Run(chosen, corpus, tmp_path / "parts").go(stop_at=11)
    resumed = training.Run(chosen, corpus, tmp_path / "parts")
    assert resumed.progress.step == 11
    assert resumed.go()["perplexity"] == whole["perplexity"]
    assert not list((tmp_path / "parts").glob(".*"))


def test_a_checkpoint_of_other_settings_is_not_overwritten(corpus: text.Corpus, tmp_path: Path) -> None:
    with pytest.raises(training.Stopped):
        training.Run(settings(), corpus, tmp_path).go(stop_at=1)
    with pytest.raises(ValueError, match="other settings"):
        training.Run(settings(tokens=1200), corpus, tmp_path)
    assert training.Run(settings(tokens=1200), corpus, tmp_path, fresh=True).progress.step == 0


def test_the_report_takes_the_best_rate_and_all_its_seeds() -> None:
    def row(method: str, ratio: float, rate: float, seed: int, perplexity: float) -> dict[str, object]:
        figures = {
            "nbytes": 1000,
            "real_ratio": ratio,
            "tokens_per_s": 10,
            "peak_bytes": 10**6,
            "title": method,
            "bpe": 0,
        }
        figures["std"] = 0.1
        return figures | {"method": method, "ratio": ratio, "rate": rate, "seed": seed, "perplexity": perplexity}

    rows = [row("dense", 1, 0.1, 0, 100), row("a", 2, 0.1, 0, 130), row("a", 2, 0.2, 0, 110), row("a", 2, 0.2, 1, 114)]
    lines = report.table(rows).splitlines()
    assert len(lines) == 4
    assert "112.0 ± 2.8 (2 seeds) | +12.0 %" in lines[-1]


def _example(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@needs_data
def test_the_example_trains_saves_serves_and_draws(tmp_path: Path) -> None:
    done = _example(
        "--sample",
        "--kept",
        str(tmp_path / "kept"),
        "--ratios",
        "32",
        "-o",
        str(tmp_path / "w.hfh"),
        "--plot",
        str(tmp_path / "c.svg"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("perplexity") == 2
    assert "equal the trained ones: True" in done.stdout
    assert (tmp_path / "w.hfh").exists()
    assert "<svg" in (tmp_path / "c.svg").read_text()


@needs_data
def test_ctrl_c_keeps_what_was_done(tmp_path: Path) -> None:
    arguments = ["--sample", "--kept", str(tmp_path), "--methods", "line", "--ratios", "32", "--tokens", "60000"]
    with subprocess.Popen(
        [sys.executable, str(EXAMPLE), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert "tokens to train on" in process.stdout.readline()
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("checkpoints/sample/*.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)  # the first point of the curve is saved
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
    assert process.returncode == 130
    assert "the same command goes on" in error
    kept = torch.load(next(tmp_path.glob("checkpoints/sample/*.pt")), weights_only=True)
    assert 0 < kept["progress"]["step"] < 60_000 // (16 * 16)


def test_bad_input_is_told_in_a_sentence(tmp_path: Path) -> None:
    done = _example("--data", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "has no train.txt.zst and no valid.txt.zst" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--sample", "--data", "nowhere"], "has no sample.txt"),
        (["--methods", "nothing"], "is not known"),
        (["--plot", "curve.txt"], "must end in"),
    ],
)
def test_bad_input_is_found_before_training(arguments: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_language_model.py", *arguments])
    with pytest.raises((OSError, HFHError), match=wanted):
        example.main()
