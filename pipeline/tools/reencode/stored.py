"""Write a shard of the new cache from a shard of the old one, with stage 1's code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.layout import pass_folder, shard_name
from pipeline.cache.reader import ShardReader
from pipeline.cache.shard_plan import ShardPlan
from pipeline.cache.sidecar import Sidecar
from pipeline.codecs.base import Codec
from pipeline.codecs.batches import require_affordable_batch
from pipeline.codecs.group import open_codec
from pipeline.codecs.packing import Sample, stack
from pipeline.precision import precision
from pipeline.records import LevelShapes, TeacherOutput, ViewRecord
from pipeline.stage1.encode import encode_views
from pipeline.stage1.shard import new_shard
from pipeline.stage1.target import ShardTarget
from pipeline.storage.place import Place


@dataclass(frozen=True)
class StoredView:
    """A stored view: its record, its FPN grids, and the codec's arrays."""

    record: ViewRecord
    levels: LevelShapes
    arrays: Sample


def read_view(reader: ShardReader, index: int, codec: Codec) -> StoredView:
    """Read one view of a shard. Raise CorruptCache where it is damaged."""
    return StoredView(*reader.view(index, codec))


def decode_views(codec: Codec, views: list[StoredView], device: torch.device) -> TeacherOutput:
    """Decode views of one padded shape, in the memory layout of the teacher's output.

    The layout decides the order of sums and so the last digits, which can change a coded byte. Decoded scores may be
    slightly outside [0, 1]. Codecs reject such values, so the scores are clamped.
    """
    with precision(False):
        output = codec.decode(stack([view.arrays for view in views], [view.levels for view in views]).to(device))
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    features = [level.contiguous(memory_format=layout) for level in output.features]
    scores = [level.clamp(0, 1).contiguous(memory_format=layout) for level in output.scores]
    boxes = [level.contiguous(memory_format=layout) for level in output.boxes]
    return TeacherOutput(features, scores, output.frs, boxes=boxes)


class StoredShard:
    """A shard of the old cache, read in the batches of its plan."""

    def __init__(self, reader: ShardReader, codec: Codec, plan: ShardPlan) -> None:
        self._reader, self._codec, self._plan = reader, codec, plan

    def levels(self) -> list[LevelShapes]:
        """Return the FPN grids of every sample."""
        return [self._reader.levels(index) for index in range(len(self._plan.samples))]

    def batches(self) -> Iterator[list[StoredView]]:
        """Yield the views of each batch."""
        start = 0
        for _, samples in self._plan.batches:
            indices = range(start, start + len(samples))
            require_affordable_batch(self._reader, indices, self._codec)
            yield [read_view(self._reader, index, self._codec) for index in indices]
            start += len(samples)


class Recoder:
    """Writes shards of the cache `target` from shards of `source`. Worker processes get copies, without open files."""

    def __init__(self, source: Place, target: Place, device: torch.device) -> None:
        self._source, self._target, self._device = Cache(source), Cache(target), device
        self._old = open_codec(self._source)
        self._new = open_codec(self._target)

    def recode(self, number: int, n: int, plan: ShardPlan) -> tuple[int, int]:
        """Write shard `n` of pass `number`. Return the number of its views and bytes."""
        stored = StoredShard(self._source.shard(number, n), self._old, plan)
        sidecar = self._write(stored, self._new_target(number, n, plan, stored.levels()))
        return len(plan.samples), sum(sidecar.bytes_by_array.values())

    def _new_target(self, number: int, n: int, plan: ShardPlan, levels: list[LevelShapes]) -> ShardTarget:
        target = self._target
        identity = {"pass": number, "shard": n, "plan": target.plan_digest, "recipe": target.plan["recipe_digest"]}
        path = pass_folder(target.root, number) / shard_name(n)
        return ShardTarget(path, target.version, identity, self._new, target.codec_digest, plan, levels)

    def _write(self, stored: StoredShard, target: ShardTarget) -> Sidecar:
        with new_shard(target) as shard:
            for views in stored.batches():
                output = decode_views(self._old, views, self._device)
                shard.add(encode_views(self._new, output, [view.record for view in views]))
            return shard.commit()
