"""A shard of one cache in the place of a teacher and its loader, so that stage 1's own code writes the other cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pipeline.cache.arrays import decode_chunk
from pipeline.cache.cache import Cache
from pipeline.cache.layout import pass_folder, shard_name
from pipeline.cache.reader import ShardReader
from pipeline.cache.shard_plan import ShardPlan
from pipeline.codecs.base import Codec
from pipeline.codecs.group import open_codec
from pipeline.codecs.packing import Sample, stack
from pipeline.records import LevelShapes, TeacherOutput, ViewRecord
from pipeline.stage1.shard import start_shard
from pipeline.storage.place import Place

View = tuple[Sample, LevelShapes]


def output_of(codec: Codec, views: list[View], device: torch.device) -> TeacherOutput:
    """What a cache says of views of one padded shape, laid out in memory as the teacher lays it out.

    The layout decides the order of sums, hence the last digits, hence now and then a byte of what is coded. Decoded
    scores may lie a little outside [0, 1], where no codec takes them.
    """
    output = codec.decode(stack([arrays for arrays, _ in views], [levels for _, levels in views]).to(device))
    laid = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    features = [level.contiguous(memory_format=laid) for level in output.features]
    scores = [level.clamp(0, 1).contiguous(memory_format=laid) for level in output.scores]
    return TeacherOutput(features, scores, output.frs)


def read_view(reader: ShardReader, index: int, codec: Codec) -> tuple[View, ViewRecord]:
    record, levels, arrays = reader.view(index, codec.check_sample)
    return (arrays, levels), record


class StoredShard:
    """Teacher and loader of `write_shard` at once: planned batches of one shard, read back instead of computed."""

    def __init__(self, reader: ShardReader, codec: Codec, plan: ShardPlan, device: torch.device) -> None:
        self._reader, self._codec, self._plan, self._device = reader, codec, plan, device
        self._record = next(spec for spec in reader.specs if spec.name == "record") if len(reader) else None
        self._first = {pad: index for index, (_, _, pad) in reversed(list(enumerate(plan.samples)))}

    def levels(self, pad_shape: tuple[int, int]) -> LevelShapes:
        """FPN grids of a padded shape, from the first sample that has it."""
        assert self._record is not None
        row = decode_chunk(self._record, bytes(self._reader.chunks(self._first[pad_shape])["record"]))
        return ViewRecord.from_row(row, row)[1]

    def batches(self) -> Iterator[tuple[Any, list[View], list[ViewRecord]]]:
        index = 0
        for batch in self._plan.batches:
            read = [read_view(self._reader, index + n, self._codec) for n in range(len(batch[1]))]
            index += len(batch[1])
            yield batch, [view for view, _ in read], [record for _, record in read]

    def __call__(self, views: list[View]) -> TeacherOutput:
        return output_of(self._codec, views, self._device)


class Recoder:
    """Writes shards of `target` from those of `source`; one in each worker process."""

    def __init__(self, source: Place, target: Place, device: torch.device) -> None:
        self._source, self._target, self._device = Cache(source), Cache(target), device
        self._old = open_codec(self._source)
        self._new = open_codec(self._target)

    def shard(self, number: int, shard: int, plan: ShardPlan) -> tuple[int, int]:
        """Returns how many views and bytes were written."""
        stored: Any = StoredShard(self._source.shard(number, shard), self._old, plan, self._device)
        head = {"pass": number, "shard": shard, "plan": self._target.plan_digest,
                "recipe": self._target.plan["recipe_digest"]}  # fmt: skip
        path = pass_folder(self._target.root, number) / shard_name(shard)

        commit = start_shard(
            stored, self._new, stored.batches(), plan, path, head, self._target.codec_digest, lambda _: None
        )
        return len(plan.samples), commit()
