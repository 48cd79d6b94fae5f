"""Makes the golden files. They are read by tests for ever: never make them anew for a format version that was released.

python tests/golden/make.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hfh_embed import reference
from hfh_embed.hashing import addresses, key_ids, table_key
from hfh_embed.snapshot import FORMAT_VERSION
from tests.builders import CASES, snapshot_of
from tests.test_hashing import IDS, POOL, SHARED

HERE = Path(__file__).parent
KEPT = (
    "line-dim-64",
    "free-32",
    "private-row-scale",
    "coded-4",
    "coded-16",
    "mlp",
    "weigh",
    "map-4-bias",
    "residual",
    "exact",
    "padding-zero",
    "trellis",
    "trellis-bands",
    "trellis-coded",
    "levels-first",
    "levels-codes",
    "levels-added",
    "levels-map",
    "kept",
    "kept-levels",
)


def hashing() -> None:
    golden: dict[str, object] = {"addresses": {}}
    for locality, shared in SHARED.items():
        where = addresses(shared, POOL, np.array(IDS))
        golden["addresses"][locality.value] = {  # type: ignore[index]
            "start": where.start.tolist(),
            "rotation": where.rotation.tolist(),
            "negative": where.negative.astype(int).tolist(),
        }
    golden["table_keys"] = {name: f"{table_key(7, name):016x}" for name in ("users", "items", "a.b-c_1")}
    words = ["", "hello", "käse", "日本", "a" * 300]
    golden["key_ids"] = dict(zip(words, key_ids(words, 10**9).tolist(), strict=True))
    (HERE / "hashing.json").write_text(json.dumps(golden) + "\n")


def snapshots() -> None:
    ids = np.array([0, 1, 7, 500, 1002])
    folder = HERE / f"format{FORMAT_VERSION}"
    folder.mkdir(exist_ok=True)
    for case in KEPT:
        if (folder / f"{case}.hfh").exists():
            continue
        words = {"users": [f"key {number}" for number in range(1_003)]} if case == "exact" else None
        snapshot = snapshot_of(*CASES[case], vocabularies=words, metadata={"case": case})
        snapshot.save(folder / f"{case}.hfh")
        rows = reference.rows(snapshot["users"].data, ids)
        facts = {"version": snapshot.version, "ids": ids.tolist(), "rows": rows.tolist()}
        (folder / f"{case}.json").write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    hashing()
    snapshots()
