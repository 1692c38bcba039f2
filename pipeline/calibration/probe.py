"""The probe: a student to measure gradients on, made of the teacher with noise on its weights.

Stage 1 has no student, yet `quality` is the error of the gradient on a student's parameters. A copy of the teacher with
noisy convolutions resembles a partly trained student: its features are near the teacher's and wrong in a structured
way, and its layers average errors as a student's do. The error of a gradient depends on how far the student still is
from the teacher. So the noise is scaled until the probe leaves as much of the teacher unexplained as students do in the
middle of their training. docs/results/codec.md compares probe and trained students.
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
from pipeline.calibration.gradient import StudentPass, unexplained
from pipeline.codecs.base import Measure
from pipeline.losses.registry import loss_named
from pipeline.records import TeacherOutput
from pipeline.teacher.heads import class_head, class_logits
from pipeline.teacher.model import Teacher

FROZEN = ("backbone.conv1", "backbone.bn1", "backbone.stem", "backbone.layer1")  # as mmdet's students leave them
UNEXPLAINED = {"feature": 0.06, "score": 0.22}  # share of the teacher's variance that a part-trained student misses
START, CLOSE, ROUNDS = 0.15, 0.12, 6  # noise tried first, relative error of that share at which its search ends
LOUDEST = 1.0
TUNING, FITTING = 12, 12  # views that the noise is found on, and the adapters


class Probe:
    """Measures the gradient errors of decoded teacher outputs, for the losses that compare `what`.

    what: 'feature' or 'score'; the probe is made for FRS's loss of it.
    `noise`: rms of the noise on convolutions in units of their rms, found on `tuning`; for features the adapters are
    fitted on `fitting`. Both are a few views, (3, h, w) uint8.
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
        """Return the teacher's output on one view, and the measure of a decoded output's gradient errors."""
        exact, features = self._teacher([view]), self._features(view)
        done = StudentPass({name: self._answer(features, name) for name in losses}, self._trained, exact)
        return exact, lambda coded: done.errors(coded).relative

    def _answer(self, features: list[Tensor], loss: str) -> list[Tensor]:
        """What a loss compares: features, adapted or not, or class logits, of every level."""
        if self._what == "score":
            return class_logits(class_head(self._student)(tuple(features)))
        return self._adapters(features) if loss_named(loss).adapters else features

    def _features(self, view: Tensor) -> list[Tensor]:
        return list(self._student.extract_feat(self._student.data_preprocessor({"inputs": [view]}, False)["inputs"]))

    def _parameters(self, detector: Any) -> list[tuple[str, Tensor]]:
        """Parameters that the compared tensor depends on, by name."""
        parts = {"backbone": detector.backbone, "neck": detector.neck}
        if self._what == "score":
            parts["head"] = class_head(detector)
        return [(f"{name}.{key}", p) for name, part in parts.items() for key, p in part.named_parameters()]

    @torch.no_grad()
    def _tune(self, tuning: Sequence[Tensor], fitting: Sequence[Tensor]) -> None:
        """Find the noise that leaves the wanted share unexplained; the share grows about as the noise squared."""
        guess = torch.sigmoid if self._what == "score" else lambda x: x
        amount = START
        for _ in range(ROUNDS):
            self._set_noise(amount)
            if self._what == "feature":
                self._adapters = fit_adapters((self._teacher([view]), self._features(view)) for view in fitting)
            left = unexplained(
                self._what,
                ((self._teacher([v]), [guess(x) for x in self._answer(self._features(v), self._what)]) for v in tuning),
            )
            ratio = UNEXPLAINED[self._what] / max(left, 1e-6)
            if abs(ratio - 1) <= CLOSE:
                break
            amount = min(LOUDEST, float(f"{amount * min(4.0, max(0.25, math.sqrt(ratio))):.2g}"))

    def _set_noise(self, amount: float) -> None:
        """Set the probe's weights: the teacher's, with noise of this amount on the convolutions."""
        self.noise = amount
        generator = torch.Generator().manual_seed(self._seed)
        for (_, noisy), (_, clean) in zip(self._parameters(self._student), self._parameters(self._teacher.detector)):
            if clean.dim() == 4:
                noise = torch.randn(clean.shape, generator=generator).to(clean.device)
                noisy.copy_(clean + amount * clean.square().mean().sqrt() * noise)


class Probes:
    """One probe for features and one for scores, made when first asked for; `views`: those of a part."""

    def __init__(
        self, teacher: Teacher, seed: int, views: Callable[[str], Iterator[Tensor]], log: Callable[[str], None]
    ) -> None:
        self._teacher, self._seed, self._views, self._log = teacher, seed, views, log
        self._made: dict[str, Probe] = {}

    def __call__(self, part: str, losses: Sequence[str]) -> Iterator[tuple[TeacherOutput, Measure]]:
        """CalibrationSample.probes."""
        (what,) = {loss_named(loss).compares for loss in losses}
        if what not in self._made:
            tuning = list(islice(self._views("choosing"), TUNING))
            fitting = list(islice(self._views("learning"), FITTING))
            self._made[what] = Probe(self._teacher, what, self._seed, tuning, fitting)
            self._log(f"probe    weight noise {self._made[what].noise:.2g} ({what} loss)")
        for view in self._views(part):
            yield self._made[what].measure(view, losses)
