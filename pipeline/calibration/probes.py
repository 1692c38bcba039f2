"""The probes of a calibration, and the student that `quality` is promised for.

The promised student leaves the shares UNEXPLAINED of the teacher's variance. These are in the middle of the shares that
trained students leave: 10 to 48% of the features' variance and 15 to 90% of the scores'. A second probe of the features
leaves a quarter of that, so it is twice as near to the teacher. It measures losses without adapters, whose students
copy the features themselves.

The error that a probe of the scores finds also depends on its noise. So several of them measure a part of the views
each (docs/results/probe.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

from torch import Tensor

from pipeline.calibration.noise import ROUNDS, START, Found
from pipeline.calibration.probe import FAR, Probe, Tuning
from pipeline.calibration.training import BATCH, STEPS
from pipeline.codecs.base import Measure
from pipeline.losses.registry import loss_named
from pipeline.records import TeacherOutput
from pipeline.teacher.model import Teacher

UNEXPLAINED = {"feature": 0.20, "score": 0.40}  # unexplained variance of a trained student
NEAR = 0.25  # share of UNEXPLAINED that a student twice as near leaves
NEAR_ROUNDS = 1  # its amount of noise follows from that of the usual probe, and its errors are scaled anyway
DRAWS = {"feature": 1, "score": 4}  # probes of the same kind with other noise
TUNING, FITTING = 12, 12  # views to find the amount of noise, and to fit the adapters


class Probes:
    """The probes of a calibration, made when needed. `views`: returns the views of a part."""

    def __init__(
        self, teacher: Teacher, seed: int, views: Callable[[str], Iterator[Tensor]], log: Callable[[str], None]
    ) -> None:
        self._teacher, self._seed, self._views, self._log = teacher, seed, views, log
        self._made: dict[tuple[str, bool], list[Probe]] = {}
        self._tuning: Tuning | None = None
        self._training: list[Tensor] | None = None  # views that all probes of the scores are trained on

    def __call__(self, part: str, losses: Sequence[str], near: bool) -> Iterator[tuple[TeacherOutput, Measure]]:
        """Yield the teacher's output and a measure of gradient errors, for each view of a part."""
        (what,) = {loss_named(loss).compares for loss in losses}
        probes = self.make(what, near)
        for n, view in enumerate(self._views(part)):
            yield probes[n % len(probes)].measure(view, losses)

    def has(self, what: str, near: bool) -> bool:
        """Return whether the probes are made already."""
        return (what, near) in self._made

    def unexplained(self, what: str, near: bool) -> float:
        """Return the share of the teacher's variance that the student leaves unexplained whose errors are measured."""
        return UNEXPLAINED[what] * (NEAR if near else 1.0)

    def reads(self, what: str, views: Mapping[str, int]) -> int:
        """Return about how many views it takes to make the probes, where the parts have so many views."""
        tuning = min(TUNING, views["choosing"])
        first = 0 if self._tuning else tuning + min(FITTING, views["learning"])
        trained = what == "score" and self._training is None
        return first + trained * min(STEPS * BATCH, views["learning"])

    def make(self, what: str, near: bool) -> list[Probe]:
        """Return the probes of a kind. They are made at the first call, which takes several rounds over its views."""
        if not self.has(what, near):
            if self._tuning is None:
                tuning, fitting = islice(self._views("choosing"), TUNING), islice(self._views("learning"), FITTING)
                self._tuning = Tuning(self._teacher, list(tuning), list(fitting))
            made = list[Probe]()
            while len(made) < min(DRAWS[what], len(self._tuning.tuning)):
                made.append(self._draw(what, near, made))
            self._log(describe_probes(what, [probe.found for probe in made], self.unexplained(what, near)))
            self._made[what, near] = made
        return self._made[what, near]

    def _draw(self, what: str, near: bool, others: Sequence[Probe]) -> Probe:
        """Make a probe with other noise than the `others` of its kind."""
        assert self._tuning is not None
        start, rounds, number = others[0].found.amount if others else START, ROUNDS, len(others)
        if near and self.has(what, False):
            start, rounds = self._made[what, False][number].found.amount * NEAR**0.5, NEAR_ROUNDS
        target = self.unexplained(what, near)
        if what == "score" and self._training is None:
            self._training = list(islice(self._views("learning"), STEPS * BATCH))
        training = self._training if what == "score" else None
        return Probe(self._teacher, what, self._seed + number, self._tuning, target, training, start, rounds)


def describe_probes(what: str, found: Sequence[Found], target: float) -> str:
    """Describe the probes of a kind in a line for the log, and in a second one where they are far from the student."""
    shares = [one.share for one in found]
    explained = " to ".join(dict.fromkeys(f"{1 - share:.0%}" for share in (max(shares), min(shares))))
    by = f" by {len(found)} of them" if len(found) > 1 else ""
    line = (
        f"probe    {what}s: {explained} of the variance explained{by}; errors are scaled to a student that explains "
        f"{1 - target:.0%}"
    )
    if all(target / FAR <= share <= target * FAR for share in shares):
        return line
    return (
        f"{line}\nwarning  expected about {1 - target:.0%} of the {what}s' variance to be explained; the stated error "
        "is an extrapolation"
    )
