"""Writes the table of README.md and docs/compress.md from the committed rows: python -m benchmarks.readme_table"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.record import RESULTS

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- codec table -->", "<!-- end -->"


def table() -> str:
    """The rows of results/codec.jsonl as Markdown."""
    rows = [json.loads(line) for line in (RESULTS / "codec.jsonl").read_text().splitlines()]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| at most | {' | '.join(methods)} |", f"|---|{'---|' * len(methods)}"]
    for ratio in dict.fromkeys(row["ratio"] for row in rows):
        cells = []
        for method in methods:
            found = [row for row in rows if row["ratio"] == ratio and row["method"] == method]
            text = "—"
            if found:
                row = found[0]
                text = f"{row['relative_error']:.3f} / {row['recall_at_10']:.3f} ({row['real_ratio']:.1f}×)"
            cells.append(text)
        lines.append(f"| 1/{ratio} of the bytes | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nRelative error / recall@10 (real ratio), MiniLM's token table."


if __name__ == "__main__":
    for path in (ROOT / "README.md", ROOT / "docs" / "compress.md"):
        text = path.read_text()
        path.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table()}\n{END}", text, flags=re.DOTALL))
