"""Decode every sample of a cache. Needs neither mmdet nor a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.budget import BUDGET
from pipeline.cache.cache import Cache
from pipeline.cache.reader import ShardReader
from pipeline.codecs.base import Codec
from pipeline.codecs.group import open_codec
from pipeline.codecs.packing import Sample, stack
from pipeline.errors import CorruptCache, PipelineError
from pipeline.progress import Progress
from pipeline.records import LevelShapes, SampleRef
from pipeline.storage.place import Place

BATCH = 8  # most samples decoded together


def find_decode_faults(root: str | Place, progress: Progress) -> Iterator[PipelineError]:
    """Decode every sample and yield an error for each failure. Call it on a cache for which `find_faults` is empty."""
    cache = Cache(root)
    try:
        codec = open_codec(cache)
    except PipelineError as error:
        yield error
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for number in cache.passes():
        try:
            shards = cache.references(number)
        except PipelineError as error:
            yield error
            continue
        progress.start(f"pass {number}", sum(map(len, shards)))
        for n, refs in enumerate(shards):
            yield from _find_shard_faults(cache, number, n, refs, codec, device)
            progress.advance(len(refs), 0)
        progress.stop()


def _find_shard_faults(
    cache: Cache, number: int, shard: int, refs: list[SampleRef], codec: Codec, device: torch.device
) -> Iterator[PipelineError]:
    try:
        reader = cache.shard(number, shard)
        stored_views = [(extent.image_id, extent.view) for extent in reader.sidecar.samples]
        if stored_views != [(ref.image_id, ref.view) for ref in refs]:
            raise CorruptCache(f"{reader.path}: its views are not those of its pass's plan.json; run stage 1 again")
    except PipelineError as error:
        yield error
        return
    samples: list[Sample] = []
    levels: list[LevelShapes] = []
    size = 0
    for ref in refs:
        try:
            grids, stored = _read(reader, ref, codec)
        except PipelineError as error:
            yield error
            continue
        needed = codec.working_bytes(stored, grids)
        if samples and (len(samples) == BATCH or size + needed > BUDGET.batch_bytes):
            yield from _decode(reader, ref.index, samples, levels, codec, device)
            samples, levels, size = [], [], 0
        samples.append(stored)
        levels.append(grids)
        size += needed
    if samples:
        yield from _decode(reader, len(refs), samples, levels, codec, device)


def _read(reader: ShardReader, ref: SampleRef, codec: Codec) -> tuple[LevelShapes, Sample]:
    """Read one sample. Raise CorruptCache where it is damaged."""
    chunks = reader.chunks(ref.index)
    record, grids = reader.record(ref.index, chunks)
    if record.pad_shape != ref.pad_shape:  # before arrays of other grids are decompressed
        raise CorruptCache(
            f"{reader.path}: sample {ref.index}: expected padded shape {ref.pad_shape}, found {record.pad_shape}"
        )
    return grids, reader.coded(ref.index, chunks, codec)


def _decode(
    reader: ShardReader, end: int, samples: list[Sample], levels: list[LevelShapes], codec: Codec, device: torch.device
) -> Iterator[PipelineError]:
    """Decode samples together. They are the last ones before the sample `end` that could be read."""
    output = codec.decode(stack(samples, levels).to(device))
    if output.unsound() is not None:
        yield CorruptCache(f"{reader.path}: {len(samples)} samples before sample {end} decode to NaN or infinity")
