"""Exact rows for the ids that a compressed table describes worst, at equal total bytes: do they pay?

    python -m benchmarks.codec_exact [--tables minilm words ...] [--ratios 16 32]

A share of the bytes goes to rows of 8 or 4 bits an entry, their scales and the ids that find them; the rest is what `hfh compress`
makes of so many bytes. Exact rows go to the ids with the largest squared error ("error") or the least cosine ("angle"). Beside the
trained tables there are two with outliers: a hundredth of the product vectors ten times as long ("long"), or in random directions of
the usual length ("strange"), as ids that were never trained have them. Rows are written as they end; those that the file has are kept.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt

from benchmarks.record import Recorder
from benchmarks.trained import TABLES, trained_table
from hfh_embed.codec import compress
from hfh_embed.codec.peers import dense_table
from hfh_embed.codec.stored import StoredFit, encode_values
from hfh_embed.fidelity import compare
from hfh_embed.packing import levels_from_codes, unpack

F32 = npt.NDArray[np.float32]
SHARES = (0.02, 0.05, 0.15)
BITS = (8, 4)
RULES = ("error", "angle")
OUTLIERS = 0.01
MADE = ("long", "strange")


def table_named(name: str) -> F32:
    """One of the trained tables, or one with outliers."""
    if name in TABLES:
        return np.ascontiguousarray(trained_table(name), dtype=np.float32)
    rows = np.array(trained_table("journey_items"), dtype=np.float32)
    generator = np.random.default_rng(0)
    picked = generator.choice(len(rows), int(OUTLIERS * len(rows)), replace=False)
    if name == "long":
        rows[picked] *= 10
    else:
        other = generator.standard_normal((len(picked), rows.shape[1]))
        lengths = np.linalg.norm(rows[picked], axis=1) / np.linalg.norm(other, axis=1)
        rows[picked] = other * lengths[:, None]
    return rows


def with_exact(fit: StoredFit, rows: F32, decoded: F32, count: int, bits: int, rule: str) -> F32:
    """Rows as decoded, but ``count`` of them as exact rows of the fit."""
    lost = np.square(rows - decoded).sum(axis=1)
    if rule == "angle":
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(decoded, axis=1)
        lost = 1 - (rows * decoded).sum(axis=1) / np.where(lengths > 0, lengths, 1)
    worst = np.argpartition(-lost, count - 1)[:count]
    values, scale = encode_values(fit.latent(rows[worst]), bits)
    levels = levels_from_codes(unpack(values, fit.table.latent_dim, bits), bits)
    made = decoded.copy()
    made[worst] = levels * scale.astype(np.float64)[:, None] @ fit.map + fit.bias
    return made


def measure(recorder: Recorder, name: str, ratio: float) -> None:
    """The rows of one table and ratio that the file lacks."""
    wanted = [(0.0, 0, ""), *((share, bits, rule) for share in SHARES for bits in BITS for rule in RULES)]
    rows = table_named(name)
    for share in sorted({share for share, _, _ in wanted}):
        cells = [
            {"table": name, "ratio": ratio, "share": s, "bits": bits, "rule": rule}
            for s, bits, rule in wanted
            if s == share
        ]
        cells = [cell for cell in cells if not recorder.find(**cell)]
        if not cells:
            continue
        snapshot = compress(rows, ratio=ratio / (1 - share))
        table = snapshot["table"]
        decoded = table.lookup(np.arange(len(rows)))
        for cell in cells:
            count, made = 0, decoded
            if share:
                one = -(-table.spec.latent_dim * cell["bits"] // 8) + 2 + 4
                count = (int(rows.nbytes / ratio) - snapshot.nbytes) // one
                made = with_exact(StoredFit(table.data), rows, decoded, count, cell["bits"], cell["rule"])
            found = compare(dense_table(made), rows, queries=1000)
            row = recorder.row(
                **cell,
                exact_rows=count,
                relative_error=round(found.relative_error, 5),
                recall_at_10=round(found.recall_at_10, 4),
                mean_cosine=round(found.mean_cosine, 5),
                first_percentile_cosine=round(found.first_percentile_cosine, 5),
            )
            print(
                f"{name:<14}{ratio:>4}x  {share:>4.0%} {cell['bits'] or '':>2} {cell['rule']:<6}{count:>7,} exact"
                f"{row['relative_error']:>9.4f}{row['recall_at_10']:>8.4f}{row['mean_cosine']:>8.4f}"
                f"{row['first_percentile_cosine']:>8.4f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*TABLES, *MADE]
    parser.add_argument("--tables", nargs="*", default=["journey_items", "minilm", *MADE], choices=names)
    parser.add_argument("--ratios", type=float, nargs="*", default=[16, 32])
    args = parser.parse_args()
    recorder = Recorder("codec_exact", resume=True)
    print(f"{'table':<14}ratio  share bits, worst by{'error':>16}{'recall':>8}{'cosine':>8}{'p1':>8}")
    for name in args.tables:
        for ratio in args.ratios:
            measure(recorder, name, ratio)


if __name__ == "__main__":
    main()
