"""The probe: a stand-in for a student, made of the teacher with noise on its first layers.

`quality` is the error of the gradient on a student's parameters, but stage 1 has no student. A teacher whose first
layers are noisy resembles a partly trained student: it sees an image less well, and the layers after that make of it
what a detector makes. Noise on the head would be different. It mixes the classes at random, which no student does, and
the same codec error is then 1.5 to three times as large beside the gradient.

The gradient error depends on the distance between student and teacher: it grows about as the inverse root of the share
of the teacher's variance that the student leaves unexplained. `quality` is promised for a student that leaves the
shares UNEXPLAINED, and the noise is scaled until the probe leaves the same. These are in the middle of the shares that
trained students leave: 10 to 48% of the features' variance and 15 to 90% of the scores'. A second probe is twice as
near to the teacher: it leaves a quarter of that variance. It shows what a better student gets, and measures losses
without adapters, whose students copy the features themselves. docs/results/probe.md compares the probe with students.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pipeline.calibration.adapters import fit_adapters
from pipeline.calibration.gradient import StudentPass, filter_sizes, unexplained_variance
from pipeline.calibration.noise import ROUNDS, START, Found, find_noise, measure_scales, set_noise
from pipeline.calibration.positions import Sampled, sample_output
from pipeline.codecs.base import Measure
from pipeline.losses.registry import loss_named
from pipeline.records import TeacherOutput
from pipeline.teacher.class_scores import class_logits
from pipeline.teacher.heads import class_head
from pipeline.teacher.model import Teacher

# Parts of a ResNet that students freeze.
FROZEN = ("backbone.conv1", "backbone.bn1", "backbone.stem", "backbone.layer1")
NOISY = 0.25  # share of the backbone's layers that are noisy
UNEXPLAINED = {"feature": 0.20, "score": 0.40}  # unexplained variance of a trained student
NEAR = 0.25  # share of UNEXPLAINED that a student twice as near leaves
NEAR_ROUNDS = 4  # its search starts close to the end
SCALING, TUNING, FITTING = 4, 12, 12  # views to scale the noise, to find its amount, and to fit the adapters


def frozen_parts(backbone: torch.nn.Module) -> tuple[str, ...]:
    """Return the parts that students with such a backbone freeze. CSPDarknet has a stem too, which students train."""
    return FROZEN if hasattr(backbone, "layer1") else ()


class Tuning:
    """What all probes need of the teacher, computed once: scales of the noise, and outputs on a few views.

    tuning: views to find the noise. fitting: views to fit the adapters of features. Views are (3, h, w) uint8.
    """

    def __init__(self, teacher: Teacher, tuning: Sequence[Tensor], fitting: Sequence[Tensor]) -> None:
        backbone: Any = teacher.detector.backbone
        self.scales = measure_scales(backbone, NOISY, lambda: [teacher([v]) for v in tuning[:SCALING]])
        self.tuning: list[tuple[Sampled, Tensor]] = [(sample_output(teacher([v])), v) for v in tuning]
        self.fitting: list[tuple[Sampled, Tensor]] = [(sample_output(teacher([v]), scores=False), v) for v in fitting]


class Probe:
    """Measures the gradient errors of decoded teacher outputs, for the losses that compare `what`.

    what: 'feature' or 'score'. target: share of the teacher's variance to leave unexplained, as the FRS loss weights
    it. start, rounds: first amount of noise to try, and how many to try. `found`: result of the search.
    """

    def __init__(
        self,
        teacher: Teacher,
        what: str,
        seed: int,
        tuning: Tuning,
        target: float,
        start: float = START,
        rounds: int = ROUNDS,
    ) -> None:
        self._teacher, self._what, self._seed = teacher, what, seed
        self._student: Any = copy.deepcopy(teacher.detector)
        for module in self._student.modules():
            if hasattr(module, "with_cp"):
                module.with_cp = False  # checkpointing saves memory by recomputing, which autograd.grad does not do
        with torch.no_grad():
            self.found = find_noise(lambda amount: self._unexplained(amount, tuning), target, start, rounds)
        frozen = frozen_parts(self._student.backbone)
        trained = [p for key, p in self._parameters() if not key.startswith(frozen)]
        self._trained = [p.requires_grad_() for p in trained]
        self._sizes = filter_sizes(self._trained)

    def measure(self, view: Tensor, losses: Sequence[str]) -> tuple[TeacherOutput, Measure]:
        """Return the teacher's output on one view, and a function from a decoded output to its gradient errors."""
        exact, features = self._teacher([view]), self._features(view)
        compared = {name: self._compared(features, name) for name in losses}
        student = StudentPass(compared, self._trained, exact, self._sizes)
        return exact, lambda coded: student.errors(coded).relative

    def _compared(self, features: list[Tensor], loss: str) -> list[Tensor]:
        """Return the tensors that a loss compares, by level: features, adapted if the loss does so, or class logits."""
        if self._what == "score":
            head = class_head(self._student)
            return class_logits(head, head(tuple(features)))
        return self._adapters(features) if loss_named(loss).adapters else features

    def _features(self, view: Tensor) -> list[Tensor]:
        return list(self._student.extract_feat(self._student.data_preprocessor({"inputs": [view]}, False)["inputs"]))

    def _parameters(self) -> list[tuple[str, Tensor]]:
        """Return the parameters that the compared tensors depend on, by name."""
        parts = {"backbone": self._student.backbone}
        if getattr(self._student, "neck", None) is not None:
            parts["neck"] = self._student.neck
        if self._what == "score":
            parts["head"] = class_head(self._student)
        return [(f"{name}.{key}", p) for name, part in parts.items() for key, p in part.named_parameters()]

    def _unexplained(self, amount: float, tuning: Tuning) -> float:
        """Set the noise, fit the adapters, and return the share of the variance that the probe then leaves."""
        set_noise(self._student.backbone, self._teacher.detector.backbone, tuning.scales, amount, self._seed)
        if self._what == "feature":
            self._adapters = fit_adapters(
                ((exact, self._features(view)) for exact, view in tuning.fitting), copies=True
            )
        compared = (
            (exact.output, exact.gather(self._compared(self._features(view), self._what)))
            for exact, view in tuning.tuning
        )
        activation = torch.sigmoid if self._what == "score" else torch.Tensor.clone
        return unexplained_variance(self._what, ((exact, [activation(x) for x in own]) for exact, own in compared))


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
        """Return the share of the teacher's variance that a probe leaves unexplained."""
        return self.make(what, near).found.share

    def make(self, what: str, near: bool) -> Probe:
        """Return a probe. It is made at the first call, which takes several rounds over its views."""
        if not self.has(what, near):
            if self._tuning is None:
                tuning, fitting = islice(self._views("choosing"), TUNING), islice(self._views("learning"), FITTING)
                self._tuning = Tuning(self._teacher, list(tuning), list(fitting))
            target, start, rounds = UNEXPLAINED[what] * (NEAR if near else 1.0), START, ROUNDS
            if near and self.has(what, False):
                start, rounds = self._made[what, False].found.amount * NEAR**0.5, NEAR_ROUNDS
            made = Probe(self._teacher, what, self._seed, self._tuning, target, start, rounds)
            self._log(describe_probe(what, made.found, target))
            self._made[what, near] = made
        return self._made[what, near]


def describe_probe(what: str, found: Found, target: float) -> str:
    """Describe a probe in a line for the log, and in a second one where the search for its noise did not converge."""
    line = f"probe    {what}s: explains {1 - found.share:.0%} of the variance (noise {found.amount:.3g})"
    if found.converged:
        return line
    return (
        f"{line}\nwarning  the probe of the {what}s explains {1 - found.share:.0%} of the variance, expected "
        f"{1 - target:.0%}; the error of a student that explains more is larger than the one stated"
    )
