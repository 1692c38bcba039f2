"""Shards of random arrays, written without a teacher or a codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.cache.arrays import ArraySpec, encode_sample
from pipeline.cache.version1_head import record_specs, sample_members, shard_head
from pipeline.cache.writer import written_shard
from pipeline.records import ViewRecord

SPECS = [
    ArraySpec("features", (5, 7), "float32", ("position", "channel"), 3),
    ArraySpec("planes", (3, 16), "uint16", ("plane", "position4"), 9),
    ArraySpec("frs", (11,), "uint8", ("position",), 9),
    *record_specs(1),
]
GRID = (2, 5)  # of the one FPN level


def random_rows(count: int) -> list[dict[str, np.ndarray]]:
    """Make `count` samples with the arrays of SPECS; the same at each call."""
    rng = np.random.default_rng(5)
    rows = [{spec.name: (rng.random(spec.shape) * 200).astype(spec.dtype) for spec in SPECS} for _ in range(count)]
    for n, row in enumerate(rows):
        row["record"] = ViewRecord(n, 0, (8, 9), (8, 9), (32, 32), 0, 7, 7, row["thumbnail"]).row((GRID,))
    return rows


def write_shard(path: Path, rows: list[dict[str, np.ndarray]]) -> Path:
    """Write a shard and its sidecar. Returns the shard's path."""
    index = {
        "image_id": (np.arange(len(rows), dtype=np.int64), ("sample",)),
        "shapes": (np.array([[GRID]] * len(rows), np.int64), ("sample", "level", "side")),
    }
    codec = {"channels": 7, "score_channels": 3}
    attributes = {"arrays": [spec.name for spec in SPECS], "levels": 1, "codec": codec}
    with written_shard(path, 1, shard_head(SPECS, attributes, len(rows), index), "ab", "cd") as writer:
        for n, row in enumerate(rows):
            writer.add(n, 0, sample_members(SPECS, n, encode_sample(SPECS, row)))
    return path
