"""A sample of a cache's views: the stored arrays and their decoded values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.budget import BUDGET
from pipeline.cache.cache import Cache
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import stack
from pipeline.records import LevelShapes, SampleRef, TeacherOutput, ViewRecord

LOCATED = 8  # bytes of a located token, for each byte of the token


@dataclass
class SampledView:
    """A stored view: its arrays without the record, its FPN grids, and the bytes of each array's chunk."""

    arrays: dict[str, np.ndarray]
    levels: LevelShapes
    sizes: dict[str, int]


class DecodedSample:
    """A sample of a cache's views. `stored`: the record and the stored view of each.

    It ends before the budget of its arrays is exceeded, with one view at least.
    """

    def __init__(self, cache: Cache, codec: Codec, refs: Sequence[SampleRef]) -> None:
        self.cache, self.codec = cache, codec
        self.stored: list[tuple[ViewRecord, SampledView]] = []
        size = 0
        for ref in refs:
            found = self._read(ref)
            size += (LOCATED if codec.ragged else 1) * sum(array.nbytes for array in found[1].arrays.values())
            if self.stored and size > BUDGET.kept_bytes:
                break
            self.stored.append(found)

    def _read(self, ref: SampleRef) -> tuple[ViewRecord, SampledView]:
        reader = self.cache.shard(ref.cache_pass, ref.shard)
        record, levels, arrays = reader.view(ref.index, self.codec)
        sizes = {name: len(chunk) for name, chunk in reader.chunks(ref.index).items()}
        return record, SampledView(arrays, levels, sizes)

    def output(self, stored: SampledView) -> TeacherOutput:
        """Decode one view, a batch of one on the CPU."""
        return self.codec.decode(stack([stored.arrays], [stored.levels]))
