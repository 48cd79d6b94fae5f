"""What README and docs claim: their Python runs, their tables are the committed rows, their links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.readme_table import table
from hfh_embed.verbs import VERBS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks() -> list[tuple[str, str]]:
    return [
        (f"{page.name}-{number}", block)
        for page in PAGES
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    ]


@pytest.mark.parametrize(("name", "block"), _blocks(), ids=[name for name, _ in _blocks()])
def test_python_blocks_run(name: str, block: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.mark.parametrize(("page", "wanted"), [("README.md", ["minilm"]), ("docs/compress.md", None)])
def test_the_tables_are_the_committed_rows(page: str, wanted: list[str] | None) -> None:
    assert table(wanted) in (ROOT / page).read_text(), "write them anew: python -m benchmarks.readme_table"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_readme_names_every_verb() -> None:
    text = (ROOT / "README.md").read_text()
    assert all(verb in text for verb in [*VERBS, "serve"])
