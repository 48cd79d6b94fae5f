"""Writes the tables of README.md and docs/compress.md from the committed rows: python -m benchmarks.readme_table"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- codec table -->", "<!-- end -->"
NAMES = {
    "minilm": "MiniLM tokens",
    "words": "words of novels",
    "amazon_items": "amazon_book items",
    "journey_items": "completejourney items",
    "towers": "pooled histories",
}


def table(wanted: list[str] | None = None) -> str:
    """The rows of results/codec.jsonl as Markdown, of some tables or of all."""
    rows = [json.loads(line) for line in (RESULTS / "codec.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "relative_error" in row and (wanted is None or row["table"] in wanted)]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| table | at most | bound | {' | '.join(methods)} |", f"|---|---|---|{'---|' * len(methods)}"]
    for name in dict.fromkeys(row["table"] for row in rows):
        for ratio in sorted({row["ratio"] for row in rows if row["table"] == name}):
            here = {row["method"]: row for row in rows if (row["table"], row["ratio"]) == (name, ratio)}
            first = next(iter(here.values()))
            shape = " × ".join(f"{length:,}" for length in first["shape"])
            cells = [_cell(here.get(method)) for method in methods]
            lines.append(
                f"| {NAMES[name]}, {shape} | 1/{ratio} of the bytes | {first['bound']:.3f} | {' | '.join(cells)} |"
            )
    return "\n".join(lines) + "\n\nRelative error / recall@10 (real ratio)."


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "—"
    return f"{row['relative_error']:.3f} / {row['recall_at_10']:.3f} ({row['real_ratio']:.1f}×)"


if __name__ == "__main__":
    for path, wanted in ((ROOT / "README.md", ["minilm"]), (ROOT / "docs" / "compress.md", None)):
        text = path.read_text()
        path.write_text(
            re.sub(f"{BEGIN}.*?{END}", lambda _, w=wanted: f"{BEGIN}\n{table(w)}\n{END}", text, flags=re.DOTALL)
        )  # type: ignore[misc]
