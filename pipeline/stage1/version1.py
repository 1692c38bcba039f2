"""Write one shard of format version 1: collect or stream encoded samples, compress them, and commit the tar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np

from pipeline.cache.arrays import encode_sample
from pipeline.cache.sidecar import Sidecar
from pipeline.cache.version1_head import Index, record_specs, sample_members, shard_attributes, shard_head
from pipeline.cache.writer import ShardWriter, written_shard
from pipeline.codecs.packing import Sample
from pipeline.stage1.compress import Compressor, compression_threads
from pipeline.stage1.encode import EncodedViews
from pipeline.stage1.target import ShardTarget


def new_shard(target: ShardTarget) -> CollectedShard | StreamedShard:
    """Return an empty shard. Samples of a ragged codec are collected, samples of fixed shape are streamed."""
    return CollectedShard(target) if target.codec.ragged else StreamedShard(target)


@contextmanager
def opened(target: ShardTarget, samples: list[Sample]) -> Iterator[tuple[Compressor, ShardWriter]]:
    """Open the tar for writing, and commit it at the end. `samples`: all samples, for a ragged codec."""
    levels, depth = target.levels, target.depth
    specs = [*target.codec.specs(levels, samples), *record_specs(depth)] if levels else []
    head = shard_head(specs, shard_attributes(target.attributes, specs, depth), len(levels), list_views(target))
    written = written_shard(target.path, target.version, head, target.identity["plan"], target.codec_digest)
    with written as tar, compression_threads() as pool:
        compressor = Compressor(partial(encode_sample, specs), partial(sample_members, specs), tar.add, pool)
        yield compressor, tar
        compressor.finish()
        tar.bytes_by_array, tar.measured = compressor.sizes, compressor.measured


def list_views(target: ShardTarget) -> Index:
    """Return the small arrays that list the shard's views; none for an empty shard."""
    if not target.levels:
        return {}
    samples = target.plan.samples
    return {
        "image_id": (np.array([image for image, _, _ in samples], np.int64), ("sample",)),
        "view": (np.array([view for _, view, _ in samples], np.int64), ("sample",)),
        "shapes": (np.array(target.levels, np.int64), ("sample", "level", "side")),
    }


class CollectedShard:
    """A shard of a ragged codec. Samples stay in memory, because the longest one sets the length of the arrays."""

    background: ClassVar[bool] = True

    def __init__(self, target: ShardTarget) -> None:
        self._target = target
        self._batches: list[EncodedViews] = []

    def __enter__(self) -> CollectedShard:
        return self

    def add(self, views: EncodedViews) -> None:
        self._batches.append(views)

    def commit(self) -> Sidecar:
        """Compress and write all batches."""
        samples = [sample for batch in self._batches for sample in batch.samples]
        with opened(self._target, samples) as (compressor, tar):
            for batch in self._batches:
                compressor.add(batch)
        return tar.sidecar

    def __exit__(self, *_: Any) -> None:
        """Do nothing: nothing is on disk before `commit`."""


class StreamedShard:
    """A shard whose samples are too large for memory. Each batch is compressed and written when it is added."""

    background: ClassVar[bool] = False

    def __init__(self, target: ShardTarget) -> None:
        self._target = target
        self._stack = ExitStack()

    def __enter__(self) -> StreamedShard:
        self._compressor, self._tar = self._stack.enter_context(opened(self._target, []))
        return self

    def add(self, views: EncodedViews) -> None:
        self._compressor.add(views)

    def commit(self) -> Sidecar:
        """Append the last batch and commit the tar. Call it inside the block."""
        self._stack.close()
        return self._tar.sidecar

    def __exit__(self, *error: Any) -> None:
        """Remove the temporary file of a shard that an error interrupted."""
        self._stack.__exit__(*error)
