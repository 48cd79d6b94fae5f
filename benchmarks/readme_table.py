"""Writes the tables of README.md and docs from the committed rows: python -m benchmarks.readme_table"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from language_model import report

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("compress", "existing-models", "language-models", "service", "training")
    ),
)
END = "<!-- end -->"


OURS = "hfh compress"
NAMES = {
    "minilm": "MiniLM tokens",
    "words": "words of novels",
    "amazon_items": "amazon_book items",
    "journey_items": "completejourney items",
    "towers": "pooled histories",
}


def table(wanted: tuple[str, ...] | None = None) -> str:
    """The rows of results/codec.jsonl as Markdown, of some tables or of all."""
    rows = [row for row in _rows("codec") if "relative_error" in row and (wanted is None or row["table"] in wanted)]
    found = dict.fromkeys(row["method"] for row in rows)
    methods = sorted(found, key=lambda method: (method != OURS, list(found).index(method)))
    lines = [f"| table | at most | bound | {' | '.join(methods)} |", f"|---|---|---|{'---|' * len(methods)}"]
    for name in (name for name in NAMES if any(row["table"] == name for row in rows)):
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


LOOKUPS = {
    "line 100x uniform 64": "default form, batch 64",
    "line 100x uniform 1024": "default form, batch 1,024",
    "line 100x uniform 16384": "default form, batch 16,384",
    "line 100x zipf 1024": "default form, Zipf ids, batch 1,024",
    "default form 10x": "default form at ratio 10 (private bits for each id)",
    "map 32 -> 64, 100x": "latent rows of 32 and a linear map",
    "exact rows for 10% of the ids, 100x": "exact rows for 10 % of the ids",
    "line of a fifth of the ids, 100x": "a fifth of the ids kept, what they share",
    "levels of a fifth of the ids, 32x": "a fifth of the ids kept, levels, ratio 32",
    "residual network of 64, 100x": "residual network of 64",
    "preset robe, 32x": "ROBE, ratio 32",
    "preset hfh, 32x": "the paper's entry-wise network, ratio 32",
}


def lookup_table() -> str:
    """Some rows of results/lookup.jsonl as Markdown."""
    rows = {row["case"]: row for row in _rows("lookup")}
    lines = ["| | hfh | F.embedding | C++ gather | F.embedding / hfh |", "|---|---|---|---|---|"]
    for case, name in LOOKUPS.items():
        row = rows[case]
        times = (f"{row[f'{peer}_ns']:,.0f}" for peer in ("hfh", "f_embedding", "gather"))
        lines.append(f"| {name} | {' | '.join(times)} | {row['f_embedding_over_hfh']:.2g} |")
    return "\n".join(lines)


def service_table() -> str:
    """The load rows of results/service.jsonl as Markdown."""
    rows = [row for row in _rows("service") if row["measure"] == "load"]
    lines = ["| | ids | CPU µs / request | requests/s | rows/s |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row["ids"]):
        rate = row["requests_per_s"]
        lines.append(f"| {row['server']} | {row['ids']:,} | {row['cpu_us']:,.1f} | {rate:,} | {rate * row['ids']:,} |")
    return "\n".join(lines)


def vocabulary_head_table() -> str:
    """The rows of results/vocabulary_head.jsonl as Markdown, milliseconds and megabytes."""
    rows = [row for row in _rows("vocabulary_head") if "loss_ms" in row]
    first = rows[0]
    lines = [
        f"{first['tokens']:,} hidden states of {first['dim']} entries, {first['vocabulary']:,} ids, {first['threads']} thread:",
        "",
        "| | loss, ms | backward, ms | 50 largest logits of one, ms | peak memory, MB |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        extra = f"{row['topk_ms']:.1f} | {row['peak_bytes'] / 1e6:,.0f}" if "topk_ms" in row else "— | —"
        lines.append(f"| {row['head']} | {row['loss_ms']:,.0f} | {row['backward_ms']:,.0f} | {extra} |")
    return "\n".join(lines)


def batching_table() -> str:
    """The rows of results/batching.jsonl as Markdown, CPU µs for a request."""
    rows = _rows("batching")
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    lines = [f"| table | ids | {' | '.join(settings)} |", f"|---|---|{'---|' * len(settings)}"]
    for table, ids in dict.fromkeys((row["table"], row["ids"]) for row in rows):
        found = {row["setting"]: f"{row['cpu_us']:.1f}" for row in rows if (row["table"], row["ids"]) == (table, ids)}
        lines.append(f"| {table} | {ids} | {' | '.join(found.get(setting, '—') for setting in settings)} |")
    return "\n".join(lines)


def sentence_table() -> str:
    """The rows of results/sentence_encoder.jsonl as Markdown, Spearman and what was lost of it."""
    rows = _rows("sentence_encoder")
    lines = ["| token table | bytes | relative error | dev | test |", "|---|---|---|---|---|"]
    for method, ratio in dict.fromkeys((row["method"], row["ratio"]) for row in rows):
        of = {row["split"]: row for row in rows if (row["method"], row["ratio"]) == (method, ratio)}
        first = next(iter(of.values()))
        scores = [
            f"{of[split]['spearman']:.4f}"
            + ("" if method == "dense" else f" ({-of[split]['loss']:+.4f} ± {of[split]['loss_margin']:.4f})")
            for split in ("dev", "test")
        ]
        name = method if method == "dense" else f"{method}, {first['real_ratio']:.1f}×"
        lines.append(f"| {name} | {first['nbytes']:,} | {first['relative_error']:.4f} | {' | '.join(scores)} |")
    return "\n".join(lines)


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]


TABLES = {
    "codec table": lambda: table(("minilm",)),
    "codec tables": table,
    "lookup table": lookup_table,
    "service table": service_table,
    "batching table": batching_table,
    "vocabulary head table": vocabulary_head_table,
    "words table": lambda: report.table(_rows("language_models")),
    "pieces table": lambda: report.table(_rows("language_models"), bpe=32000),
    "sentence table": sentence_table,
}


def written(text: str) -> str:
    """A page with its tables made anew."""
    for name, make in TABLES.items():
        begin = f"<!-- {name} -->"
        text = re.sub(f"{begin}.*?{END}", lambda _, b=begin, m=make: f"{b}\n{m()}\n{END}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(written(path.read_text()))
