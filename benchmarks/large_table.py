"""`hfh compress` of a table of 10 M x 64 float32 (2.56 GB): minutes, and memory beyond the page cache.

    python -m benchmarks.large_table [--folder SCRATCH] [--rows 10000000] [--ratio 32] [--killed]

The table has 24 directions of falling strength and noise; it is made in a scratch folder, chunk by chunk, and removed with it. Memory
is what /proc tells of the command's anonymous pages, looked at ten times a second: mapped files are the page cache's. With `--killed` the
command is killed after half a minute and run again, and seconds are those of both together.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import hfh_embed
from benchmarks.record import Recorder

DIM, DIRECTIONS, NOISE = 64, 24, 0.2
BLOCK = 2**18
TARGET_S, TARGET_MB = 600, 1000


def make(path: Path, count: int) -> None:
    """Write the table."""
    generator = np.random.default_rng(0)
    strength = 1 / np.sqrt(np.arange(1, DIRECTIONS + 1))
    basis = (generator.normal(size=(DIRECTIONS, DIM)) * strength[:, None]).astype(np.float32)
    rows = np.lib.format.open_memmap(path, "w+", np.dtype("<f4"), (count, DIM))
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        hidden = generator.standard_normal((size, DIRECTIONS), dtype=np.float32)
        noise = generator.standard_normal((size, DIM), dtype=np.float32)
        rows[start : start + size] = hidden @ basis + np.float32(NOISE) * noise
    rows.flush()


def anonymous_mb(pid: int) -> float:
    """The process's anonymous memory now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon")), 0.0)


def watch(command: list[str], until_s: float = float("inf")) -> tuple[float, float]:
    """Seconds that a command takes, or ``until_s`` when it is killed then, and its most anonymous memory in MB."""
    began, most = time.monotonic(), 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, anonymous_mb(process.pid))
        if time.monotonic() - began > until_s:
            process.kill()
            process.wait()
            return until_s, most
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.monotonic() - began, most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the scratch folder goes (default: the system's)")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--ratio", type=float, default=32)
    parser.add_argument("--killed", action="store_true", help="kill the command after a twentieth of the target")
    args = parser.parse_args()
    recorder = Recorder("large_table", resume=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        dense, out = Path(folder, "rows.npy"), Path(folder, "rows.hfh")
        make(dense, args.rows)
        command = [
            sys.executable,
            "-m",
            "hfh_embed.cli",
            "compress",
            str(dense),
            "-o",
            str(out),
            "--ratio",
            f"{args.ratio}",
        ]
        spent, most = watch(command, TARGET_S / 20) if args.killed else (0.0, 0.0)
        seconds, memory = watch(command)
        info = hfh_embed.inspect(out)
        left = sorted(os.listdir(folder))
        row = recorder.row(
            rows=args.rows,
            dim=DIM,
            dense_mb=round(4e-6 * args.rows * DIM),
            ratio=round(info.spec.ratio, 3),
            method=info.metadata["method"],
            relative_error=float(info.metadata["relative error"]),
            seconds=round(spent + seconds, 1),
            killed_after_s=spent or None,
            peak_anonymous_mb=round(max(memory, most)),
            rows_per_s=round(args.rows / (spent + seconds)),
            left_behind=[name for name in left if name not in ("rows.npy", "rows.hfh")],
        )
    passed = row["seconds"] <= TARGET_S and row["peak_anonymous_mb"] <= TARGET_MB and not row["left_behind"]
    print(
        f"{args.rows:,} x {DIM} at {row['ratio']:.1f}x: {row['seconds']:.0f} s (at most {TARGET_S}), "
        f"{row['peak_anonymous_mb']:,} MB (at most {TARGET_MB:,}): {'pass' if passed else 'FAIL'}"
    )


if __name__ == "__main__":
    main()
