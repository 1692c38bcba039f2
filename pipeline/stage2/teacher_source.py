"""Sources of the teacher's outputs: a cache or a live teacher. Both return a TeacherOutput, so losses are the same."""

from __future__ import annotations

from typing import Any, Protocol, Self

import torch

from pipeline.codecs.base import Codec
from pipeline.precision import precision
from pipeline.records import EncodedBatch, TeacherOutput
from pipeline.teacher.model import Teacher


class TeacherSource(Protocol):
    """Returns the TeacherOutput of a batch, on the training device."""

    def take(self, data: dict[str, Any], device: torch.device) -> Any:
        """Return the part of a collated batch that `output` needs, on the device."""

    def output(self, taken: Any) -> TeacherOutput:
        """Return the teacher's output. `taken`: the result of `take`."""


class SharedSource:
    """A source that all copies of a model share. EMA copies the model, but must not copy a live teacher."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class CachedTeacher(SharedSource):
    """Decodes the cached arrays. The teacher is neither built nor loaded."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def take(self, data: dict[str, Any], device: torch.device) -> EncodedBatch:
        return data["teacher"].to(device)

    def output(self, taken: EncodedBatch) -> TeacherOutput:
        with precision(False):  # also if the student uses TF32
            return self._codec.decode(taken)


class LiveTeacher(SharedSource):
    """Runs the teacher on the pixels of the batch. Each view has its own padded grid, as in the cache."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def take(self, data: dict[str, Any], device: torch.device) -> Any:
        return list(data["inputs"])

    def output(self, taken: Any) -> TeacherOutput:
        return self.teacher.by_shape(taken)
