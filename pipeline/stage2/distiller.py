"""The distiller: wraps any mmdet detector and adds the distillation losses to its own.

Shape legend: B batch, L FPN levels, C teacher channels, C_s student channels, K score channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn

from pipeline.errors import ConfigError, StudentError
from pipeline.losses.base import Loss
from pipeline.losses.frs import SCORE
from pipeline.losses.ld import LD, box_distributions
from pipeline.losses.registry import feature_losses
from pipeline.records import TeacherOutput
from pipeline.sections import DistillSection
from pipeline.stage2.compatibility import TeacherLayout, check_student
from pipeline.stage2.teacher_source import TeacherSource
from pipeline.teacher.class_scores import class_logits
from pipeline.teacher.heads import class_head, feature_source


class Preprocessor(BaseDataPreprocessor):
    """Runs the student's preprocessor, and adds what the teacher source needs from the batch."""

    def __init__(self, student: nn.Module, source: TeacherSource) -> None:
        super().__init__()
        self.student, self._source = student, source

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        taken = self._source.take(data, self.device) if training else None
        own = {"inputs": data["inputs"], "data_samples": data.get("data_samples")}
        ready = self.student(own, training)
        return {**ready, "teacher": taken} if training else ready


def new_adapters(loss: Loss, own: Sequence[int], channels: Sequence[int], chosen: str | None = None) -> nn.ModuleList:
    """Return one adapter per level, from the student's width in `own` to the teacher's in `channels`.

    chosen: '1x1' or '3x3', None for that of the loss.

    A loss may bring its own module. One without adapters gets 1x1 convolutions if the widths differ, and identities
    otherwise.
    """
    if loss.module is not None:
        if chosen:
            raise ConfigError(f"distill.adapter={chosen!r}: the loss {loss.name!r} has its own module; remove the key")
        return nn.ModuleList(loss.module(before, after) for before, after in zip(own, channels, strict=True))
    return nn.ModuleList(_adapter(loss, *pair, chosen) for pair in zip(own, channels, strict=True))


def _adapter(loss: Loss, own: int, channels: int, chosen: str | None) -> nn.Module:
    kernel = 3 if loss.adapters else 1 if own != channels else 0
    kernel = {"1x1": 1, "3x3": 3}[chosen] if chosen else kernel
    return nn.Conv2d(own, channels, kernel, padding=kernel // 2) if kernel else nn.Identity()


class Distiller(BaseModel):
    """A student with the distillation losses added to its own losses.

    Hooks on the student's neck (its backbone, if it has none) and class head return the features and logits of the
    forward pass of its own loss, so no second pass is needed. The teacher source is not a submodule, so a live teacher
    is in neither parameters nor checkpoints. Attributes that the distiller lacks are those of the student. Raises
    StudentError where FPN grids or score channels do not match the teacher's.
    """

    def __init__(
        self,
        student: BaseModel,
        source: TeacherSource,
        section: DistillSection,
        teacher: TeacherLayout,
    ) -> None:
        super().__init__(data_preprocessor=Preprocessor(student.data_preprocessor, source))
        self.student, self.section, self.iteration = student, section, 0
        self._source = [source]  # in a list, so that a live teacher is not registered as a submodule
        widths = check_student(student, teacher, section)
        self._loss = feature_losses()[section.feature_loss]
        self.adapters = new_adapters(self._loss, widths, teacher.channels, section.adapter)

    def __getattr__(self, name: str) -> Any:
        """Look up in the student what the distiller lacks, for hooks that were made for a bare detector."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "student":
                raise
            return getattr(self.student, name)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor", teacher: Any = None) -> Any:
        """Run the student as mmengine expects. `teacher`: in 'loss' mode, what the source took from the batch."""
        if mode != "loss":
            return self.student(inputs, data_samples, mode=mode)
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            target = self._source[0].output(teacher)
        with self._record_outputs() as outputs:
            losses = self.student(inputs, data_samples, mode="loss")
        adapted = self._adapt(outputs["features"], target)
        feature, ramp = self._loss(target, adapted), self.ramp()
        losses[f"loss_{self.section.feature_loss}_feature"] = self.section.feature_weight * ramp * feature
        if self.section.score_weight:  # without a score loss, the cache may have no scores
            logits = [self._crop(logit, size) for logit, size in zip(outputs["logits"], target.levels)]
            score = SCORE(target, logits)
            losses["loss_frs_score"] = self.section.score_weight * ramp * score
        if self.section.box_weight:
            boxes = [self._crop(box, size) for box, size in zip(outputs["boxes"], target.levels)]
            losses["loss_ld_box"] = self.section.box_weight * ramp * LD(target, boxes)
        return losses

    def _adapt(self, features: list[Tensor], target: TeacherOutput) -> list[Tensor]:
        """Return the student's adapted features on the target's grids."""
        chosen, mode = self.section.student_levels, self.section.interpolate
        samples, wanted = len(features[0]), len(target.features[0])
        if samples != wanted:
            raise StudentError(
                f"student {type(self.student).__name__} has {samples / wanted:g} times as many samples in its features "
                "when it trains, which the teacher's outputs do not have; use another student"
            )
        paired = zip(self.adapters, features if chosen is None else [features[n] for n in chosen], target.levels)
        if mode is None:
            return [adapter(self._crop(feature, size)) for adapter, feature, size in paired]
        options = {"align_corners": False} if mode == "bilinear" else {}
        return [F.interpolate(adapter(feature), size, mode=mode, **options) for adapter, feature, size in paired]

    def ramp(self) -> float:
        """Return the factor of the warm-up: linear from 0 to 1 over the first `warmup_iters` iterations."""
        return min(1.0, self.iteration / self.section.warmup_iters) if self.section.warmup_iters else 1.0

    @staticmethod
    def _crop(student: Tensor, size: tuple[int, int]) -> Tensor:
        if student.shape[-2] < size[0] or student.shape[-1] < size[1]:
            raise StudentError(
                f"student's FPN grid {tuple(student.shape[-2:])} is smaller than the teacher's {size}: its strides "
                "must be the same and its data_preprocessor must pad to multiples of 32"
            )
        return student[..., : size[0], : size[1]]

    @contextmanager
    def _record_outputs(self) -> Iterator[dict[str, list[Tensor]]]:
        """Record the features and the class logits of the forward pass inside the block."""
        outputs: dict[str, list[Tensor]] = {}
        source = feature_source(self.student)
        handles = [source.register_forward_hook(lambda _m, _i, out: outputs.update(features=list(out)))]
        section = self.section
        readers = (("logits", section.score_weight, class_logits), ("boxes", section.box_weight, box_distributions))
        for name, weight, read in readers:
            if weight:
                record = partial(self._record_head, outputs, name, read)
                handles.append(class_head(self.student).register_forward_hook(record))
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def _record_head(outputs: dict[str, list[Tensor]], name: str, read: Any, head: nn.Module, _: Any, out: Any) -> None:
        outputs[name] = read(head, out)
