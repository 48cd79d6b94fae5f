import numpy as np
import pytest

from hfh_embed.errors import InputError
from hfh_embed.fidelity import compare
from hfh_embed.layout import SnapshotSpec
from hfh_embed.plots import Measured, Spectrum, plot_fidelity
from hfh_embed.snapshot import Snapshot
from hfh_embed.spec import PrivateSpec, TableSpec

N, D = 400, 12
DENSE = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


def _table(rows: np.ndarray, **options):
    """A table that gives exactly these rows."""
    spec = SnapshotSpec((TableSpec("t", *rows.shape, private=PrivateSpec(rows.shape[1], 32)),))
    return Snapshot(spec, {"table/t/private.values": rows.astype(np.float32)}, **options)["t"]


def test_the_same_rows_lose_nothing() -> None:
    found = compare(_table(DENSE), DENSE, frequencies=np.arange(N))
    assert found.mean_cosine == pytest.approx(1)
    assert (found.relative_error, found.recall_at_10, found.weighted_error) == (0, 1, 0)


def test_every_figure_equals_its_definition() -> None:
    rows = DENSE + np.random.default_rng(1).normal(size=DENSE.shape).astype(np.float32) * 0.4
    frequencies = np.arange(N)
    found = compare(_table(rows), DENSE, frequencies=frequencies, queries=N)
    cosines = (rows * DENSE).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(DENSE, axis=1)
    assert found.mean_cosine == pytest.approx(cosines.mean(), rel=1e-5)
    assert found.worst_ids[0] == cosines.argmin()
    assert found.first_percentile_cosine == pytest.approx(np.quantile(cosines, 0.01), rel=1e-5)
    assert found.relative_error == pytest.approx(((rows - DENSE) ** 2).sum() / (DENSE**2).sum(), rel=1e-5)
    assert found.weighted_cosine == pytest.approx((cosines * frequencies).sum() / frequencies.sum(), rel=1e-5)

    def nearest(table: np.ndarray) -> np.ndarray:
        unit = table / np.linalg.norm(table, axis=1, keepdims=True)
        scores = unit @ unit.T
        np.fill_diagonal(scores, -9)
        return np.argsort(-scores, axis=1)[:, :10]

    hits = [len(set(a) & set(b)) / 10 for a, b in zip(nearest(DENSE), nearest(rows), strict=True)]
    assert found.recall_at_10 == pytest.approx(np.mean(hits), abs=1e-3)
    assert 0.2 < found.recall_at_10 < 0.9
    assert found.recall_margin == pytest.approx(1.96 * np.std(hits) / np.sqrt(N), abs=1e-3)


def test_the_worst_rows_are_named_by_the_vocabulary() -> None:
    rows = DENSE.copy()
    rows[7] *= -1
    table = _table(rows, vocabularies={"t": [f"word {n}" for n in range(N)]})
    found = compare(table, DENSE)
    assert found.worst_keys[0] == "word 7"
    assert "word 7" in found.to_text()
    assert found.to_dict()["worst_cosine"] == pytest.approx(-1)


def test_zero_rows_that_stay_zero_are_perfect_and_others_are_not() -> None:
    rows, dense = DENSE.copy(), DENSE.copy()
    rows[:2] = dense[:2] = 0
    rows[1, 0] = 1
    found = compare(_table(rows), dense)
    assert found.worst_cosine == 0
    assert found.worst_ids[0] == 1


@pytest.mark.parametrize(
    ("dense", "options", "message"),
    [
        (DENSE[:5], {}, r"shape \(5, 12\)"),
        (DENSE, {"queries": 0}, "queries"),
        (DENSE, {"frequencies": np.ones(3)}, "frequencies"),
    ],
)
def test_what_does_not_fit_is_refused(dense, options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare(_table(DENSE), dense, **options)


def test_one_row_has_no_neighbours() -> None:
    assert compare(_table(DENSE[:1]), DENSE[:1]).recall_at_10 == 1


def test_a_sample_gives_margins_that_hold_the_whole(monkeypatch) -> None:
    generator = np.random.default_rng(5)
    dense = generator.normal(size=(4_000, 6)).astype(np.float32)
    table = _table(dense + 0.3 * generator.normal(size=dense.shape).astype(np.float32))
    whole = compare(table, dense, frequencies=np.arange(4_000))
    part = compare(table, dense, frequencies=np.arange(4_000), sample=1_000, queries=50)
    assert (whole.compared, whole.cosine_margin, whole.error_margin) == (4_000, 0, 0)
    assert (part.rows, part.compared, part.queries) == (4_000, 1_000, 50)
    assert part.cosine_margin > 0 and abs(part.mean_cosine - whole.mean_cosine) < 2 * part.cosine_margin
    assert part.error_margin > 0 and abs(part.relative_error - whole.relative_error) < 2 * part.error_margin
    assert part.weighted_error == pytest.approx(whole.weighted_error, rel=0.2)
    assert "a sample of 1,000" in part.to_text() and "±" not in whole.to_text().splitlines()[1]
    assert part.worst_cosine >= whole.worst_cosine


def _measured(rows: np.ndarray, dense: np.ndarray) -> Measured:
    table = _table(rows)
    return Measured("name", table, table.nbytes, compare(table, dense, queries=20))


@pytest.mark.parametrize("frequencies", [None, np.arange(N)])
def test_a_plot_is_drawn(tmp_path, frequencies) -> None:
    several = [_measured(DENSE + 0.1, DENSE), _measured(DENSE, DENSE)]
    plot_fidelity(tmp_path / "e.png", DENSE, several, Spectrum.of(DENSE), frequencies)
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="must end in"):
        plot_fidelity(tmp_path / "e.txt", DENSE, several, Spectrum.of(DENSE))


@pytest.mark.parametrize("dense", [DENSE[:1], DENSE[:, :1], np.zeros((30, 4), dtype=np.float32)])
def test_the_smallest_tables_can_be_drawn(tmp_path, dense) -> None:
    plot_fidelity(tmp_path / "e.svg", dense, [_measured(dense, dense)], Spectrum.of(dense))
    assert (tmp_path / "e.svg").stat().st_size > 0


def test_the_bound_is_that_of_its_definition() -> None:
    spectrum = Spectrum.of(DENSE)
    assert spectrum.bound(1e-6) == pytest.approx(((DENSE - DENSE.mean(0)) ** 2).sum() / (DENSE**2).sum(), rel=1e-5)
    assert spectrum.bound(24) < spectrum.bound(12)
