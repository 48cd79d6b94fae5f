"""The examples of docs/service.md, run against a server with other tables."""

import re
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest

import hfh_embed
from tests.service.conftest import serving

TEXT = (Path(__file__).parent.parent.parent / "docs" / "service.md").read_text()
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", TEXT, re.MULTILINE)]


def _examples(start: str, host: str) -> list[str]:
    """What begins like this in a block, for the tables of the tests."""
    found = [block[block.index(start) :] for block in BLOCKS if start in block]
    for old, new in {
        "localhost:8000": host,
        "minilm": "users",
        '"hello"': '"key 1"',
        '"world"': '"key 2"',
        "rows/7592": "rows/7",
    }.items():
        found = [block.replace(old, new) for block in found]
    return found


def test_examples_in_python(snapshot_path) -> None:
    users = hfh_embed.open(snapshot_path)["users"]
    with serving(str(snapshot_path)) as (url, _):
        (triton,) = _examples("import numpy as np, tritonclient", url.removeprefix("http://"))
        names: dict = {}
        exec(triton, names)
        assert np.array_equal(names["rows"], users.lookup([1, 2, 3]))
        names["client"].close()
        (openai,) = _examples("from openai import", url.removeprefix("http://"))
        exec(openai, names)
        names["client"].close()


@pytest.mark.parametrize("start", ["curl -s localhost:8000/v1/tables/minilm/search", "curl -si localhost"])
def test_examples_with_curl(snapshot_path, start: str) -> None:
    with serving(str(snapshot_path)) as (url, _):
        (example,) = _examples(start, url.removeprefix("http://"))
        done = subprocess.run(["bash", "-c", example], capture_output=True, text=True, check=True)
        assert '"table":"users"' in done.stdout
        assert "error" not in done.stdout
