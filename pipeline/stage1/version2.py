"""Write one shard of format version 2: compress samples into a spool, then commit the tar."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any, ClassVar

import numpy as np

from pipeline.cache.shard_index import encode_index
from pipeline.cache.sidecar import Sidecar
from pipeline.cache.spool import SampleSpool
from pipeline.cache.version2 import encode_sample, sample_member, shard_attributes, shard_head
from pipeline.cache.writer import written_shard
from pipeline.stage1.compress import Compressor, compression_threads
from pipeline.stage1.encode import EncodedViews
from pipeline.stage1.target import ShardTarget


class SpooledShard:
    """A shard whose samples are compressed when they are added.

    The head comes first in the tar and has the records of all samples, so the samples wait in a spool until `commit`.
    """

    background: ClassVar[bool] = True

    def __init__(self, target: ShardTarget) -> None:
        self._target, self._items = target, target.codec.items()
        self._records: list[np.ndarray] = []
        self._thumbnails: list[np.ndarray] = []

    def __enter__(self) -> SpooledShard:
        self._stack = ExitStack()
        self._spool = self._stack.enter_context(SampleSpool(self._target.path))
        encode, member = partial(encode_sample, self._items), partial(sample_member, self._items)
        pool = self._stack.enter_context(compression_threads())
        self._compressor = Compressor(encode, member, self._spool.add, pool)
        return self

    def add(self, views: EncodedViews) -> None:
        self._records += [sample["record"] for sample in views.samples]
        self._thumbnails += [sample["thumbnail"] for sample in views.samples]
        self._compressor.add(views)

    def commit(self) -> Sidecar:
        """Append the last batch, and write head, samples and sidecar."""
        with self._stack:
            target, count = self._target, len(self._records)
            self._compressor.finish()
            index = encode_index(np.stack(self._records), np.stack(self._thumbnails)) if count else {}
            depth = target.depth if count else 0  # all images may have been broken
            head = shard_head(shard_attributes(target.attributes, self._items, depth), count, index)
            written = written_shard(target.path, target.version, head, target.identity["plan"], target.codec_digest)
            with written as tar:
                for image_id, view, member in self._spool.samples():
                    tar.add(image_id, view, member)
                sizes = {name: len(chunk) for name, chunk in index.items()}
                tar.bytes_by_array, tar.measured = self._compressor.sizes | sizes, self._compressor.measured
            return tar.sidecar

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Discard the samples of a shard that an error interrupted. Otherwise they wait for `commit`."""
        if kind is not None:
            self._stack.close()
