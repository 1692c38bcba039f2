"""One shard, from planned views to a committed tar: load, run the teacher, encode, compress, append."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.cache.arrays import ArraySpec, encode_sample
from pipeline.cache.head import Index, record_columns, record_specs, shard_head
from pipeline.cache.shard_plan import ShardPlan
from pipeline.cache.writer import written_shard
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import Sample
from pipeline.errors import CodecError
from pipeline.records import LevelShapes, ViewRecord
from pipeline.storage.place import Place
from pipeline.teacher.model import Teacher

Loaded = tuple[Any, Sequence[Tensor], Sequence[ViewRecord]]  # a planned batch, its views, what they looked like
Row = tuple[ViewRecord, Sample]


def start_shard(
    teacher: Teacher, codec: Codec, batches: Iterable[Loaded], shard: ShardPlan, path: Place, identity: dict[str, Any],
    codec_digest: str, advance: Callable[[int], None],
) -> Callable[[], int]:  # fmt: skip
    """Run the teacher over a shard's batches. Returns what compresses and commits it, and then tells its bytes.

    Samples of a ragged codec, which are small, wait for the longest of their shard: the teacher has done all of them
    when this returns, and the rest may be called in another thread. Large samples of fixed shape are not kept: there
    the teacher runs, batch by batch, while the shard is written.
    """
    errors: dict[str, float] = {}
    rows: Iterable[list[Row]] = _encoded(teacher, codec, batches, errors, advance)
    if codec.ragged:
        rows = list(rows)
    levels = [teacher.levels(pad) for _, _, pad in shard.samples]
    depth = len(levels[0]) if levels else 0

    def commit() -> int:
        waiting = [sample for batch in rows for _, sample in batch] if codec.ragged else []
        specs = [*codec.specs(levels, waiting), *record_specs(depth)] if levels else []
        attributes = _attributes(codec, codec_digest, specs, depth, identity)
        head = shard_head(specs, attributes, len(levels), _index(shard, levels))
        with written_shard(path, specs, head, identity["plan"], codec_digest) as writer:
            for record, chunks in _compressed(specs, rows):
                writer.add(record.image_id, record.view, chunks)
            writer.measured = {name: total / len(levels) for name, total in errors.items()}
        return sum(writer.sidecar.bytes_by_array.values())

    return commit


def _encoded(
    teacher: Teacher, codec: Codec, batches: Iterable[Loaded], errors: dict[str, float], advance: Callable[[int], None]
) -> Iterator[list[Row]]:
    """Batches of encoded samples; sums their errors up."""
    for _, views, records in batches:
        output = teacher(views)
        try:
            samples, measured = codec.encode(output)
        except CodecError as error:
            meant = records if error.sample is None else [records[error.sample]]
            named = ", ".join(f"{record.image_id} (view {record.view})" for record in meant)
            raise CodecError(f"image {named}: {error}") from error
        for name, value in measured.items():
            errors[name] = errors.get(name, 0.0) + value * len(samples)
        for sample, record in zip(samples, records):
            sample["record"], sample["thumbnail"] = record.row(output.levels), record.thumbnail
        advance(len(samples))
        yield list(zip(records, samples))


def _compressed(specs: list[ArraySpec], rows: Iterable[list[Row]]) -> Iterator[tuple[ViewRecord, dict[str, bytes]]]:
    """The chunks of every sample, in order; a batch is compressed in threads while the next one is made."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        before: Iterator[tuple[ViewRecord, dict[str, bytes]]] = iter(())
        for batch in rows:
            chunks = pool.map(lambda row: encode_sample(specs, row[1]), batch)
            yield from before
            before = zip([record for record, _ in batch], chunks)
        yield from before


def _attributes(
    codec: Codec, codec_digest: str, specs: list[ArraySpec], depth: int, identity: dict[str, Any]
) -> dict[str, Any]:
    return {
        **identity, "codec_digest": codec_digest, "codec": codec.settings, "levels": depth,
        "arrays": [spec.name for spec in specs], "record_columns": record_columns(depth),
    }  # fmt: skip


def _index(shard: ShardPlan, levels: list[LevelShapes]) -> Index:
    """The small arrays that tell what a shard holds; none where quarantine left nothing."""
    if not levels:
        return {}
    rows = [(image, view) for image, view, _ in shard.samples]
    return {
        "image_id": (np.array([image for image, _ in rows], np.int64), ("sample",)),
        "view": (np.array([view for _, view in rows], np.int64), ("sample",)),
        "shapes": (np.array(levels, np.int64), ("sample", "level", "side")),
    }
