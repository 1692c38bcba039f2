"""Where the teacher's outputs come from. Both sources return the same record; the losses do not know which it was."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from pipeline.codecs.base import Codec
from pipeline.precision import precision
from pipeline.records import EncodedBatch, TeacherOutput
from pipeline.teacher.model import Teacher


class TeacherSource(Protocol):
    """Turns what rides in a batch into a TeacherOutput on the training device."""

    def take(self, data: dict[str, Any], device: torch.device) -> Any:
        """The part of a collated batch that `output` needs, on the device."""

    def output(self, taken: Any) -> TeacherOutput:
        """Return the teacher's output for what `take` gave."""


class CachedTeacher:
    """Decodes the cache's planes; neither builds nor loads a teacher."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def take(self, data: dict[str, Any], device: torch.device) -> EncodedBatch:
        return data["teacher"].to(device)

    def output(self, taken: EncodedBatch) -> TeacherOutput:
        with precision(False):  # also for a student that runs with TF32
            return self._codec.decode(taken)


class LiveTeacher:
    """Runs the teacher on the batch's own pixels, each view on its own padded grid as in the cache."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def take(self, data: dict[str, Any], device: torch.device) -> Any:
        return list(data["inputs"])

    def output(self, taken: Any) -> TeacherOutput:
        return self.teacher.by_shape(taken)
