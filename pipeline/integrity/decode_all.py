"""Decode every sample of a cache. Needs neither mmdet nor a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pipeline.cache.cache import Cache
from pipeline.codecs.base import Codec
from pipeline.codecs.group import open_codec
from pipeline.codecs.packing import stack
from pipeline.errors import CorruptCache, PipelineError
from pipeline.progress import Progress
from pipeline.records import LevelShapes, SampleRef
from pipeline.storage.place import Place

BATCH = 8  # samples decoded together


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
    for start in range(0, len(refs), BATCH):
        samples: list[Any] = []
        levels: list[LevelShapes] = []
        for ref in refs[start : start + BATCH]:
            try:
                chunks = reader.chunks(ref.index)
                record, grids = reader.record(ref.index, chunks)
                if record.pad_shape != ref.pad_shape:  # before arrays of other grids are decompressed
                    raise CorruptCache(
                        f"{reader.path}: sample {ref.index}: expected padded shape {ref.pad_shape}, found "
                        f"{record.pad_shape}"
                    )
                stored = reader.coded(ref.index, chunks, codec)
            except PipelineError as error:
                yield error
                continue
            samples.append(stored)
            levels.append(grids)
        if samples:
            output = codec.decode(stack(samples, levels).to(device))
            unsound = output.unsound()
            if unsound is not None:
                yield CorruptCache(f"{reader.path}: samples {start}-{start + BATCH - 1} decode to NaN or infinity")
