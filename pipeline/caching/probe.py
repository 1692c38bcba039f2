"""A student that nobody trained: the teacher itself with noise on its weights, to measure gradients on.

Stage 1 has no student, yet the error that a user asks for is that of the gradient on a student's parameters. A copy of
the teacher whose convolutions are off by a fifth of their size answers like a partly trained student: its features
are near the teacher's and wrong in a structured way, and its layers average errors as a student's do. How near this
comes to really trained students is measured in docs/results/codec.md.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from pipeline.codec.base import Measure
from pipeline.gradient import LOSSES, StudentPass
from pipeline.records import TeacherOutput
from pipeline.teacher import Teacher
from pipeline.teacher.heads import class_head, dense_outputs

FROZEN = ("backbone.conv1", "backbone.bn1", "backbone.stem", "backbone.layer1")  # as mmdet's students leave them
NOISE = 0.2  # rms of the noise on a convolution's weights, in units of their rms


class Probe:
    """Gradient errors of what stands in for a teacher's output, one view at a time."""

    def __init__(self, teacher: Teacher, seed: int) -> None:
        self._teacher = teacher
        self._student: Any = copy.deepcopy(teacher.detector)
        for module in self._student.modules():
            if hasattr(module, "with_cp"):
                module.with_cp = False  # checkpointing saves memory by recomputing, which autograd.grad does not do
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self._student.parameters():
                if parameter.dim() == 4:
                    noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                    parameter.add_(NOISE * parameter.square().mean().sqrt() * noise)
        parts = {"backbone": self._student.backbone, "neck": self._student.neck, "head": class_head(self._student)}
        named = [(f"{name}.{key}", p) for name, part in parts.items() for key, p in part.named_parameters()]
        self._parameters = [p.requires_grad_() for key, p in named if not key.startswith(FROZEN)]

    def measure(self, view: Tensor) -> tuple[TeacherOutput, Measure]:
        """The teacher's output on one view, and the function that tells the errors of a stand-in."""
        exact = self._teacher([view])
        inputs = self._student.data_preprocessor({"inputs": [view]}, False)["inputs"]
        features, logits = dense_outputs(self._student, inputs)
        done = StudentPass(features, logits, self._parameters, exact)

        def errors(coded: TeacherOutput) -> dict[str, float]:
            found = done.errors(coded).relative
            return {what: found[what] for what in LOSSES}

        return exact, errors
