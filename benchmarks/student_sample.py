"""A calibration sample that measures the gradient error of a trained student, in place of the probe's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor

from benchmarks.student import Student, missed_share
from pipeline.calibration.gradient import StudentPass
from pipeline.codecs.base import Measure
from pipeline.records import TeacherOutput
from pipeline.teacher.model import Teacher


class StudentSample:
    """A calibration sample whose probe is a trained student. views: (3, h, w) uint8; outputs are kept as float16."""

    def __init__(
        self, teacher: Teacher, student: Student, views: Sequence[Tensor], choosing: int, reported: int
    ) -> None:
        self._teacher, self._student = teacher, student
        ends = (choosing, choosing + reported)
        self._views = {"choosing": views[: ends[0]], "reported": views[ends[0] : ends[1]], "learning": views[ends[1] :]}
        self._kept = [halved(teacher([view])) for view in self._views["learning"]]

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        if part == "learning":
            return map(as_float, self._kept)
        return (self._teacher([view]) for view in self._views[part])

    def probes(self, part: str, losses: Sequence[str], near: bool = False) -> Iterator[tuple[TeacherOutput, Measure]]:
        compared = [loss for loss in losses if loss in ("feature", "score") and not near]
        for view in self._views[part] if compared else ():
            exact = self._teacher([view])
            outputs = self._student(view)
            passed = StudentPass({loss: outputs[loss] for loss in compared}, self._student.parameters(), exact)
            yield exact, partial(relative_errors, passed)

    def unexplained(self, what: str, near: bool = False) -> float:
        return missed_share(what, self._teacher, self._student, list(self._views["reported"])) or 1.0

    def training(self, steps: int) -> Callable[[], None]:
        print(f"training the network, {steps} steps", flush=True)
        return lambda: None


def relative_errors(passed: StudentPass, coded: TeacherOutput) -> dict[str, float]:
    """Return the gradient error of each loss."""
    return passed.errors(coded).relative


def as_float(output: TeacherOutput) -> TeacherOutput:
    """Return an output of `halved` as float32."""
    return TeacherOutput([f.float() for f in output.features], [s.float() for s in output.scores], output.frs)


def halved(output: TeacherOutput) -> TeacherOutput:
    """Return an output with float16 features and scores."""
    return TeacherOutput([f.half() for f in output.features], [s.half() for s in output.scores], output.frs)
