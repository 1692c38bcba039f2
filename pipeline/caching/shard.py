"""One shard, from planned views to a committed tar: load, run the teacher, encode, compress, append."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.arrays import ArraySpec, encode_chunk
from pipeline.cache.plan import ShardPlan
from pipeline.cache.writer import ShardWriter, shard_head
from pipeline.caching.loader import ViewLoader
from pipeline.codec.base import Codec
from pipeline.records import RECORD_COLUMNS, THUMBNAIL
from pipeline.teacher import Teacher


def record_specs(levels: int) -> list[ArraySpec]:
    """The two arrays that every codec's shards share: who the sample is, and what it looked like."""
    columns = len(RECORD_COLUMNS) + 2 * levels
    side = ("row", "column", "bgr")
    return [
        ArraySpec("record", (columns,), "int64", ("field",)),
        ArraySpec("thumbnail", (THUMBNAIL, THUMBNAIL, 3), "uint8", side),
    ]


def record_columns(levels: int) -> list[str]:
    return [*RECORD_COLUMNS, *(f"level{n}_{side}" for n in range(levels) for side in ("height", "width"))]


def write_shard(
    teacher: Teacher, codec: Codec, loader: ViewLoader, shard: ShardPlan, path: Path, identity: dict[str, Any],
    codec_digest: str, advance: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Compute one shard and commit it with its sidecar. Nothing appears under its name if this fails."""
    levels = [teacher.levels(pad) for _, _, pad in shard.samples]
    depth = len(levels[0]) if levels else 0
    specs = [*codec.specs(levels), *record_specs(depth)] if levels else []
    attributes = {
        **identity, "codec_digest": codec_digest, "codec": codec.settings, "levels": depth,
        "arrays": [spec.name for spec in specs], "record_columns": record_columns(depth),
    }  # fmt: skip
    rows = [(image, view) for image, view, _ in shard.samples]
    index = {
        "image_id": (np.array([image for image, _ in rows], np.int64), ("sample",)),
        "view": (np.array([view for _, view in rows], np.int64), ("sample",)),
        "shapes": (np.array(levels, np.int64).reshape(len(rows), depth, 2), ("sample", "level", "side")),
    }
    head = shard_head(specs, attributes, len(rows), index if rows else {})
    errors: dict[str, float] = {}
    with (
        ShardWriter(path, specs, head, identity["plan"], codec_digest) as writer,
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
    ):
        for _, views, records in loader.batches():
            output = teacher(views)
            samples, measured = codec.encode(output)
            for name, value in measured.items():
                errors[name] = errors.get(name, 0.0) + value * len(samples)
            for sample, record in zip(samples, records):
                sample["record"], sample["thumbnail"] = record.row(output.levels), record.thumbnail
            encode = lambda sample: {spec.name: encode_chunk(spec, sample[spec.name]) for spec in specs}  # noqa: E731
            size = 0
            for record, chunks in zip(records, pool.map(encode, samples)):
                writer.add(record.image_id, record.view, chunks)
                size += sum(map(len, chunks.values()))
            advance(len(samples), size)
        writer.measured = {name: total / len(rows) for name, total in errors.items()}
