"""The probe: a stand-in for a student, made of the teacher with noise on its weights.

`quality` is the error of the gradient on a student's parameters, but stage 1 has no student. A copy of the teacher with
noise on its convolutions resembles a partly trained student. Its features are near the teacher's, its errors are
structured, and its layers average errors as a student's layers do.

The gradient error depends on the distance between student and teacher. The noise is therefore scaled until the probe
leaves the same share of the teacher's variance unexplained as students in the middle of their training.
docs/results/codec.md compares the probe with trained students.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pipeline.calibration.adapters import fit_adapters
from pipeline.calibration.gradient import StudentPass, unexplained_variance
from pipeline.codecs.base import Measure
from pipeline.losses.registry import loss_named
from pipeline.records import TeacherOutput
from pipeline.teacher.class_scores import class_logits
from pipeline.teacher.heads import class_head
from pipeline.teacher.model import Teacher

FROZEN = ("backbone.conv1", "backbone.bn1", "backbone.stem", "backbone.layer1")  # parts that mmdet's students freeze
UNEXPLAINED = {"feature": 0.06, "score": 0.22}  # unexplained variance of a partly trained student
START, CLOSE, ROUNDS = 0.15, 0.12, 6  # first noise; relative error of the share and rounds that end the search
MAX_NOISE = 1.0
TUNING, FITTING = 12, 12  # views to find the noise, and to fit the adapters


class Probe:
    """Measures the gradient errors of decoded teacher outputs, for the losses that compare `what`.

    what: 'feature' or 'score'; the probe is tuned for the FRS loss of it. noise: rms of the noise on convolutions,
    relative to their rms. tuning: views to find the noise. fitting: views to fit the adapters of features. Views are
    (3, h, w) uint8.
    """

    def __init__(
        self, teacher: Teacher, what: str, seed: int, tuning: Sequence[Tensor], fitting: Sequence[Tensor]
    ) -> None:
        self._teacher, self._what, self._seed = teacher, what, seed
        self._student: Any = copy.deepcopy(teacher.detector)
        for module in self._student.modules():
            if hasattr(module, "with_cp"):
                module.with_cp = False  # checkpointing saves memory by recomputing, which autograd.grad does not do
        self._tune(tuning, fitting)
        trained = [p for key, p in self._parameters(self._student) if not key.startswith(FROZEN)]
        self._trained = [p.requires_grad_() for p in trained]

    def measure(self, view: Tensor, losses: Sequence[str]) -> tuple[TeacherOutput, Measure]:
        """Return the teacher's output on one view, and a function from a decoded output to its gradient errors."""
        exact, features = self._teacher([view]), self._features(view)
        student = StudentPass({name: self._compared(features, name) for name in losses}, self._trained, exact)
        return exact, lambda coded: student.errors(coded).relative

    def _compared(self, features: list[Tensor], loss: str) -> list[Tensor]:
        """Return the tensors that a loss compares, by level: features, adapted if the loss does so, or class logits."""
        if self._what == "score":
            head = class_head(self._student)
            return class_logits(head, head(tuple(features)))
        return self._adapters(features) if loss_named(loss).adapters else features

    def _features(self, view: Tensor) -> list[Tensor]:
        return list(self._student.extract_feat(self._student.data_preprocessor({"inputs": [view]}, False)["inputs"]))

    def _parameters(self, detector: Any) -> list[tuple[str, Tensor]]:
        """Return the parameters that the compared tensors depend on, by name."""
        parts = {"backbone": detector.backbone, "neck": detector.neck}
        if self._what == "score":
            parts["head"] = class_head(detector)
        return [(f"{name}.{key}", p) for name, part in parts.items() for key, p in part.named_parameters()]

    @torch.no_grad()
    def _tune(self, tuning: Sequence[Tensor], fitting: Sequence[Tensor]) -> None:
        """Find the noise with the wanted unexplained variance, which grows with about the square of the noise."""
        activation = torch.sigmoid if self._what == "score" else lambda x: x
        amount = START
        for _ in range(ROUNDS):
            self._set_noise(amount)
            if self._what == "feature":
                self._adapters = fit_adapters((self._teacher([view]), self._features(view)) for view in fitting)
            share = unexplained_variance(
                self._what,
                (
                    (self._teacher([v]), [activation(x) for x in self._compared(self._features(v), self._what)])
                    for v in tuning
                ),
            )
            ratio = UNEXPLAINED[self._what] / max(share, 1e-6)
            if abs(ratio - 1) <= CLOSE:
                break
            amount = min(MAX_NOISE, float(f"{amount * min(4.0, max(0.25, math.sqrt(ratio))):.2g}"))

    def _set_noise(self, amount: float) -> None:
        """Set the probe's weights to the teacher's, with noise of this relative rms on convolutions."""
        self.noise = amount
        generator = torch.Generator().manual_seed(self._seed)
        for (_, noisy), (_, clean) in zip(self._parameters(self._student), self._parameters(self._teacher.detector)):
            if clean.dim() == 4:
                noise = torch.randn(clean.shape, generator=generator).to(clean.device)
                noisy.copy_(clean + amount * clean.square().mean().sqrt() * noise)


class Probes:
    """One probe for features and one for scores, made when needed. `views`: returns the views of a part."""

    def __init__(
        self, teacher: Teacher, seed: int, views: Callable[[str], Iterator[Tensor]], log: Callable[[str], None]
    ) -> None:
        self._teacher, self._seed, self._views, self._log = teacher, seed, views, log
        self._made: dict[str, Probe] = {}

    def __call__(self, part: str, losses: Sequence[str]) -> Iterator[tuple[TeacherOutput, Measure]]:
        """Yield the teacher's output and a measure of gradient errors, for each view of a part."""
        (what,) = {loss_named(loss).compares for loss in losses}
        if what not in self._made:
            tuning = list(islice(self._views("choosing"), TUNING))
            fitting = list(islice(self._views("learning"), FITTING))
            self._made[what] = Probe(self._teacher, what, self._seed, tuning, fitting)
            self._log(f"probe    weight noise {self._made[what].noise:.2g} ({what} loss)")
        for view in self._views(part):
            yield self._made[what].measure(view, losses)
