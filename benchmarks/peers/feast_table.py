"""Rows of 64 float32 by Feast's feature server over Redis: makes the repository and fills the store. Runs in Feast's own environment.

python feast_table.py FOLDER REDIS_PORT ROWS
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32

if __name__ == "__main__":
    folder, port, rows = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    (folder / "feature_store.yaml").write_text(
        "project: bench\nregistry: registry.db\nprovider: local\nentity_key_serialization_version: 3\n"
        f'online_store:\n  type: redis\n  connection_string: "127.0.0.1:{port}"\n'
    )
    now = datetime.now(UTC)
    vectors = np.random.default_rng(0).standard_normal((rows, 64), dtype=np.float32)
    frame = pd.DataFrame({"user": np.arange(rows), "vector": list(vectors), "event_timestamp": now})
    frame.head(1).to_parquet(folder / "users.parquet")
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
    view = FeatureView(
        name="users",
        entities=[user],
        ttl=timedelta(days=1),
        schema=[Field(name="vector", dtype=Array(Float32))],
        source=FileSource(path=str(folder / "users.parquet"), timestamp_field="event_timestamp"),
    )
    store = FeatureStore(str(folder))
    store.apply([user, view])
    store.write_to_online_store("users", frame)
