"""A calibration sample that keeps to a time, however slow the machine is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from torch import Tensor

from pipeline.calibration.probes import TUNING
from pipeline.calibration.sample import ViewSample
from pipeline.codecs.base import Measure
from pipeline.records import TeacherOutput
from pipeline.stage1.job import Job
from pipeline.tools.forecast.clock import Clock

T = TypeVar("T")
LEAST = 1  # views of an iteration, however late it is
SHARE = 0.25  # of the time left to the calibration, for one iteration: there are about a dozen
TRAINING_SHARE = 0.6  # the same, for training a network
PROBE_SHARE, PROBE_COST = 0.1, 60  # of the calibration's time, to tune probes; a view of all, in times of the teacher


class TimedSample(ViewSample):
    """A sample whose iterations end early when their share of `seconds` is used up.

    per_view: seconds of the teacher for a view. `training_seconds`: how long all steps of a network take. The near
    probe is not made: a forecast does not show the errors that it measures.
    """

    states_errors = False  # one view reports
    training_seconds = 0.0

    def __init__(self, job: Job, clock: Clock, seconds: float, per_view: float) -> None:
        super().__init__(job)
        self._clock, self._end = clock, clock.now() + seconds
        self._tuned = min(TUNING, max(LEAST, int(PROBE_SHARE * seconds / (PROBE_COST * per_view))))
        self._limit: int | None = None  # of the views that the probes read
        self.parts["reported"] = self.parts["reported"][:1]  # tables and steps do not depend on them
        if self._tuned < TUNING:
            clock.leave_out(f"{TUNING - self._tuned} of {TUNING} views that tune a probe")

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        return self._timed(super().outputs(part))

    def probes(self, part: str, losses: Sequence[str], near: bool = False) -> Iterator[tuple[TeacherOutput, Measure]]:
        if part == "reported" and near:
            return iter(())
        self._limit = self._tuned  # while a probe is made, if it is not made yet
        measured = super().probes(part, losses, near)
        self._limit = None
        return self._timed(measured)

    def training(self, steps: int) -> Callable[[], bool | None]:
        """Return a function that says after each step whether to train on."""
        advance, done, begun = super().training(steps), iter(range(1, steps)), self._clock.now()
        until = self._until(TRAINING_SHARE)

        def after() -> bool:
            advance()
            number = next(done, steps)
            self.training_seconds = (self._clock.now() - begun) * steps / number
            if number < steps and self._clock.now() > until:
                self._clock.leave_out(f"{steps - number} of {steps} training steps of the score network")
                return False
            return True

        return after

    def _until(self, share: float = SHARE) -> float:
        """Return the time at which an iteration that begins now should end."""
        now = self._clock.now()
        return now + share * max(0.0, self._end - now)

    def _timed(self, items: Iterable[T]) -> Iterator[T]:
        until = self._until()
        for number, item in enumerate(items):
            if number >= LEAST and self._clock.now() > until:
                self._clock.leave_out("some views of the calibration")
                return
            yield item

    def _checked_views(self, part: str) -> Iterator[Tensor]:
        return islice(super()._checked_views(part), self._limit)
