"""A sample of a cache's views: what lies in the cache, and what it decodes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.cache.cache import Cache
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import stack
from pipeline.records import LevelShapes, SampleRef, TeacherOutput, ViewRecord


@dataclass
class SampledView:
    """One view as it lies in the cache: arrays without its record, grids, bytes of every array's chunk."""

    arrays: dict[str, np.ndarray]
    levels: LevelShapes
    sizes: dict[str, int]


class DecodedSample:
    """A sample of a cache's views, read and decoded."""

    def __init__(self, cache: Cache, codec: Codec, refs: Sequence[SampleRef]) -> None:
        self.cache, self.codec, self.refs = cache, codec, refs
        self.stored = [self._read(ref) for ref in refs]

    def _read(self, ref: SampleRef) -> tuple[ViewRecord, SampledView]:
        reader = self.cache.shard(ref.cache_pass, ref.shard)
        record, levels, arrays = reader.view(ref.index, self.codec.check_sample)
        sizes = {name: len(chunk) for name, chunk in reader.chunks(ref.index).items()}
        return record, SampledView(arrays, levels, sizes)

    def output(self, stored: SampledView) -> TeacherOutput:
        """Decode one view, a batch of one on the CPU."""
        return self.codec.decode(stack([stored.arrays], [stored.levels]))
