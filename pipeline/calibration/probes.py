"""The probes of a calibration, and the student that `quality` is promised for.

The promised student leaves the shares UNEXPLAINED of the teacher's variance. These are in the middle of the shares that
trained students leave: 10 to 48% of the features' variance and 15 to 90% of the scores'. A second probe of the features
leaves a quarter of that, so it is twice as near to the teacher. It measures losses without adapters, whose students
copy the features themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from torch import Tensor

from pipeline.calibration.noise import ROUNDS, START, Found
from pipeline.calibration.probe import FAR, Probe, Tuning
from pipeline.codecs.base import Measure
from pipeline.losses.registry import loss_named
from pipeline.records import TeacherOutput
from pipeline.teacher.model import Teacher

UNEXPLAINED = {"feature": 0.20, "score": 0.40}  # unexplained variance of a trained student
NEAR = 0.25  # share of UNEXPLAINED that a student twice as near leaves
NEAR_ROUNDS = 1  # its amount of noise follows from that of the usual probe, and its errors are scaled anyway
TUNING, FITTING = 12, 12  # views to find the amount of noise, and to fit the adapters


class Probes:
    """The probes of a calibration, made when needed. `views`: returns the views of a part."""

    def __init__(
        self, teacher: Teacher, seed: int, views: Callable[[str], Iterator[Tensor]], log: Callable[[str], None]
    ) -> None:
        self._teacher, self._seed, self._views, self._log = teacher, seed, views, log
        self._made: dict[tuple[str, bool], Probe] = {}
        self._tuning: Tuning | None = None

    def __call__(self, part: str, losses: Sequence[str], near: bool) -> Iterator[tuple[TeacherOutput, Measure]]:
        """Yield the teacher's output and a measure of gradient errors, for each view of a part."""
        (what,) = {loss_named(loss).compares for loss in losses}
        probe = self.make(what, near)
        for view in self._views(part):
            yield probe.measure(view, losses)

    def has(self, what: str, near: bool) -> bool:
        """Return whether a probe is made already."""
        return (what, near) in self._made

    def unexplained(self, what: str, near: bool) -> float:
        """Return the share of the teacher's variance that the student leaves unexplained whose errors are measured."""
        return UNEXPLAINED[what] * (NEAR if near else 1.0)

    def make(self, what: str, near: bool) -> Probe:
        """Return a probe. It is made at the first call, which takes several rounds over its views."""
        if not self.has(what, near):
            if self._tuning is None:
                tuning, fitting = islice(self._views("choosing"), TUNING), islice(self._views("learning"), FITTING)
                self._tuning = Tuning(self._teacher, list(tuning), list(fitting))
            target, start, rounds = self.unexplained(what, near), START, ROUNDS
            if near and self.has(what, False):
                start, rounds = self._made[what, False].found.amount * NEAR**0.5, NEAR_ROUNDS
            training = self._views("learning") if what == "score" else None
            made = Probe(self._teacher, what, self._seed, self._tuning, target, training, start, rounds)
            self._log(describe_probe(what, made.found, target))
            self._made[what, near] = made
        return self._made[what, near]


def describe_probe(what: str, found: Found, target: float) -> str:
    """Describe a probe in a line for the log, and in a second one where it is far from the promised student."""
    line = (
        f"probe    {what}s: explains {1 - found.share:.0%} of the variance (noise {found.amount:.3g}); "
        f"its errors are scaled to a student that explains {1 - target:.0%}"
    )
    if target / FAR <= found.share <= target * FAR:
        return line
    return (
        f"{line}\nwarning  the probe of the {what}s explains {1 - found.share:.0%} of the variance, expected about "
        f"{1 - target:.0%}; the stated error is an extrapolation"
    )
