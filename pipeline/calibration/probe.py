"""The probe: a stand-in for a student, made of the teacher with noise on its first layers.

`quality` is the error of the gradient on a student's parameters, but stage 1 has no student. A teacher whose first
layers are noisy resembles a partly trained student: it sees an image less well, and the layers after that make of it
what a detector makes. Noise on the head would be different: it mixes the classes at random, which no student does. The
adapters of the features are fitted, and the probe of the scores is trained for a few steps, so that the probe is near a
minimum of its loss, as a student is.

The gradient error grows as the inverse root of the share of the teacher's variance that a student leaves unexplained.
The noise is scaled until the probe leaves about as much as the promised student does (probes.py), and its errors are
multiplied by the root of the ratio of both shares. docs/results/probe.md compares the probe with students.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.calibration.adapters import fit_adapters
from pipeline.calibration.gradient import StudentPass, filter_sizes, unexplained_variance
from pipeline.calibration.noise import ROUNDS, START, find_noise, measure_scales, set_noise
from pipeline.calibration.positions import Sampled, sample_output
from pipeline.calibration.training import train
from pipeline.codecs.base import Measure
from pipeline.losses.registry import loss_named
from pipeline.records import TeacherOutput
from pipeline.teacher.class_scores import class_logits
from pipeline.teacher.heads import class_head
from pipeline.teacher.model import Teacher

# Parts of a ResNet that students freeze.
FROZEN = ("backbone.conv1", "backbone.bn1", "backbone.stem", "backbone.layer1")
NOISY = 0.25  # share of the backbone's layers that are noisy
SCALING = 4  # views to scale the noise
LEFT = 0.5  # share of the noise's variance that training leaves, about
FAR = 2.5  # factor between the shares of the probe and of the promised student beyond which the log has a warning


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

    what: 'feature' or 'score'. target: share of the teacher's variance that the promised student leaves unexplained, as
    the FRS loss weights it. training: views (3, h, w) uint8 to train it on; None to leave the noise as it is. start,
    rounds: first amount of noise to try, and how many to try. `found`: result of the search, with the share that the
    probe leaves.
    """

    def __init__(
        self,
        teacher: Teacher,
        what: str,
        seed: int,
        tuning: Tuning,
        target: float,
        training: Iterable[Tensor] | None,
        start: float = START,
        rounds: int = ROUNDS,
    ) -> None:
        self._teacher, self._what, self._seed = teacher, what, seed
        self._student: Any = copy.deepcopy(teacher.detector)
        for module in self._student.modules():
            if hasattr(module, "with_cp"):
                module.with_cp = False  # checkpointing saves memory by recomputing, which autograd.grad does not do
        noisy = target if training is None else target / LEFT
        with torch.no_grad():
            self.found = find_noise(lambda amount: self._disturb(amount, tuning), noisy, start, rounds)
        frozen = frozen_parts(self._student.backbone)
        trained = [p for key, p in self._parameters() if not key.startswith(frozen)]
        self._trained = [p.requires_grad_() for p in trained]
        if training is not None:
            train(self._trained, filter_sizes(self._trained), self._loss, training)
            with torch.no_grad():
                self.found = replace(self.found, share=self._unexplained(tuning))
        # From the error of this probe to that of the promised student. It is not made much smaller by extrapolation.
        self._scale = max(self.found.share / target, 1 / FAR) ** 0.5

    def measure(self, view: Tensor, losses: Sequence[str]) -> tuple[TeacherOutput, Measure]:
        """Return the teacher's output on one view, and a function from a decoded output to its gradient errors."""
        exact, features = self._teacher([view]), self._features(view)
        compared = {name: self._compared(features, name) for name in losses}
        student = StudentPass(compared, self._trained, exact)
        return exact, lambda coded: {
            loss: error * self._scale for loss, error in student.errors(coded).relative.items()
        }

    def _loss(self, view: Tensor) -> Tensor:
        """Return the loss of the compared tensors on one view."""
        return loss_named(self._what)(self._teacher([view]), self._compared(self._features(view), self._what))

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

    def _disturb(self, amount: float, tuning: Tuning) -> float:
        """Set the noise, fit the adapters, and return the share of the variance that the probe then leaves."""
        set_noise(self._student.backbone, self._teacher.detector.backbone, tuning.scales, amount, self._seed)
        if self._what == "feature":
            self._adapters = fit_adapters(
                ((exact, self._features(view)) for exact, view in tuning.fitting), copies=True
            )
        return self._unexplained(tuning)

    def _unexplained(self, tuning: Tuning) -> float:
        """Return the share of the variance that the probe leaves."""
        compared = (
            (exact.output, exact.gather(self._compared(self._features(view), self._what)))
            for exact, view in tuning.tuning
        )
        activation = torch.sigmoid if self._what == "score" else torch.Tensor.clone
        return unexplained_variance(self._what, ((exact, [activation(x) for x in own]) for exact, own in compared))
