"""Write one shard: collect or stream encoded samples, compress them, and commit the tar."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.cache.head import Index, record_columns, record_specs, shard_head
from pipeline.cache.shard_plan import ShardPlan
from pipeline.cache.sidecar import Sidecar
from pipeline.cache.writer import written_shard
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import Sample
from pipeline.records import LevelShapes
from pipeline.stage1.compress import CompressingWriter
from pipeline.stage1.encode import EncodedViews
from pipeline.storage.place import Place


@dataclass(frozen=True)
class ShardTarget:
    """The path and the head of a shard.

    identity: `pass`, `shard`, `plan` and `recipe` of the head's attributes; levels: FPN grids of each planned sample.
    """

    path: Place
    identity: dict[str, Any]
    codec: Codec
    codec_digest: str
    plan: ShardPlan
    levels: list[LevelShapes]

    def new_shard(self) -> CollectedShard | StreamedShard:
        """Return an empty shard. Samples of a ragged codec are collected, samples of fixed shape are streamed."""
        return CollectedShard(self) if self.codec.ragged else StreamedShard(self)

    @contextmanager
    def open(self, samples: list[Sample]) -> Iterator[CompressingWriter]:
        """Open the tar for writing, and commit it at the end. `samples`: all samples, for a ragged codec."""
        depth = len(self.levels[0]) if self.levels else 0  # 0 if all views are in quarantine
        specs = [*self.codec.specs(self.levels, samples), *record_specs(depth)] if self.levels else []
        attributes = {
            **self.identity,
            "codec_digest": self.codec_digest,
            "codec": self.codec.settings,
            "levels": depth,
            "arrays": [spec.name for spec in specs],
            "record_columns": record_columns(depth),
        }
        head = shard_head(specs, attributes, len(self.levels), self._index())
        threads = min(8, os.cpu_count() or 1)
        opened = written_shard(self.path, specs, head, self.identity["plan"], self.codec_digest)
        with opened as tar, ThreadPoolExecutor(threads) as pool:
            writer = CompressingWriter(tar, specs, pool)
            yield writer
            writer.finish()

    def _index(self) -> Index:
        """Return the small arrays that list the shard's views; none for an empty shard."""
        if not self.levels:
            return {}
        samples = self.plan.samples
        return {
            "image_id": (np.array([image for image, _, _ in samples], np.int64), ("sample",)),
            "view": (np.array([view for _, view, _ in samples], np.int64), ("sample",)),
            "shapes": (np.array(self.levels, np.int64), ("sample", "level", "side")),
        }


class CollectedShard:
    """A shard of a ragged codec. Samples stay in memory, because the longest one sets the length of the arrays."""

    def __init__(self, target: ShardTarget) -> None:
        self._target = target
        self._batches: list[EncodedViews] = []

    def __enter__(self) -> CollectedShard:
        return self

    def add(self, views: EncodedViews) -> None:
        """Collect a batch."""
        self._batches.append(views)

    def commit(self) -> Sidecar:
        """Compress and write all batches. Return the sidecar. May run on another thread, after the `with` block."""
        samples = [sample for batch in self._batches for sample in batch.samples]
        with self._target.open(samples) as writer:
            for batch in self._batches:
                writer.add(batch)
        return writer.sidecar

    def __exit__(self, *_: Any) -> None:
        """Do nothing: nothing is on disk before `commit`."""


class StreamedShard:
    """A shard whose samples are too large for memory. Each batch is compressed and written when it is added."""

    def __init__(self, target: ShardTarget) -> None:
        self._target = target
        self._stack = ExitStack()

    def __enter__(self) -> StreamedShard:
        self._writer = self._stack.enter_context(self._target.open([]))
        return self

    def add(self, views: EncodedViews) -> None:
        """Compress a batch and append it."""
        self._writer.add(views)

    def commit(self) -> Sidecar:
        """Append the last batch and commit the tar. Return the sidecar. Call it inside the `with` block."""
        self._stack.close()
        return self._writer.sidecar

    def __exit__(self, *error: Any) -> None:
        """Remove the temporary file of a shard that an error interrupted."""
        self._stack.__exit__(*error)
