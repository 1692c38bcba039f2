"""A student that learns from a teacher: any mmdet detector, wrapped and otherwise left alone.

Shape legend: B batch, L FPN levels, C teacher channels, C_s student channels, K score channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn

from pipeline.config import DistillSection
from pipeline.errors import StudentError
from pipeline.losses.base import Loss
from pipeline.losses.frs import SCORE
from pipeline.losses.registry import feature_losses
from pipeline.stage2.teacher_source import TeacherSource
from pipeline.teacher.heads import class_head, class_logits, output_shapes


class Preprocessor(BaseDataPreprocessor):
    """The student's own preprocessor, and beside it whatever the teacher source takes from the batch."""

    def __init__(self, student: nn.Module, source: TeacherSource) -> None:
        super().__init__()
        self.student, self._source = student, source

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        taken = self._source.take(data, self.device) if training else None
        own = {"inputs": data["inputs"], "data_samples": data.get("data_samples")}
        ready = self.student(own, training)
        return {**ready, "teacher": taken} if training else ready


def new_adapters(loss: Loss, levels: int, own: int, channels: int) -> nn.ModuleList:
    """What stands between the student's features and the teacher's, for each level; not shared.

    A loss that asks for no adapters gets 1x1 ones where the widths differ.
    """
    kernel = 3 if loss.adapters else 1 if own != channels else 0
    adapter = partial(nn.Conv2d, own, channels, kernel, padding=kernel // 2) if kernel else nn.Identity
    return nn.ModuleList(adapter() for _ in range(levels))


class Distiller(BaseModel):
    """`student` with the FRS losses on top of its own.

    Hooks on the student's neck and class head give the features and logits of the pass that its own loss makes: no
    second head pass. The source is no submodule: a teacher is in neither parameters nor checkpoints.
    Raises StudentError where levels or score channels differ from the teacher's.
    """

    def __init__(
        self,
        student: BaseModel,
        source: TeacherSource,
        section: DistillSection,
        levels: int,
        channels: int,
        score_channels: int,
    ) -> None:
        super().__init__(data_preprocessor=Preprocessor(student.data_preprocessor, source))
        self.student, self.section, self.iteration = student, section, 0
        self._source = [source]  # a list hides a live teacher's modules from this one
        shapes, own_channels, own_scores = output_shapes(student, (128, 128))
        if len(shapes) != levels:
            raise StudentError(f"student has {len(shapes)} FPN levels, the teacher's outputs have {levels}")
        if section.score_weight and own_scores != score_channels:
            raise StudentError(
                f"student has {own_scores} class score channels a position, the teacher's outputs have "
                f"{score_channels}: classes and anchors must be the same"
            )
        self._loss = feature_losses()[section.feature_loss]
        self.adapters = new_adapters(self._loss, levels, own_channels, channels)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor", teacher: Any = None) -> Any:
        """mmengine's protocol; in 'loss' mode `teacher` is what the source took from the batch."""
        if mode != "loss":
            return self.student(inputs, data_samples, mode=mode)
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            target = self._source[0].output(teacher)
        with self._watched() as seen:
            losses = self.student(inputs, data_samples, mode="loss")
        cropped = [zip(tensors, target.levels) for tensors in (seen["features"], seen["logits"])]
        features, logits = ([self._crop(t, size) for t, size in pairs] for pairs in cropped)
        adapted = [adapter(feature) for adapter, feature in zip(self.adapters, features)]
        feature, ramp = self._loss(target, adapted), self.ramp()
        losses[f"loss_{self.section.feature_loss}_feature"] = self.section.feature_weight * ramp * feature
        if self.section.score_weight:  # a cache may hold no scores for a student that does not ask for them
            score = SCORE(target, logits)
            losses["loss_frs_score"] = self.section.score_weight * ramp * score
        return losses

    def ramp(self) -> float:
        """Linear from 0 over the first `warmup_iters` iterations."""
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
    def _watched(self) -> Iterator[dict[str, list[Tensor]]]:
        """The neck's output and the class logits of the one pass made inside."""
        seen: dict[str, list[Tensor]] = {}
        neck: nn.Module = self.student.neck
        handles = [
            neck.register_forward_hook(lambda _m, _i, out: seen.update(features=list(out))),
            class_head(self.student).register_forward_hook(lambda _m, _i, out: seen.update(logits=class_logits(out))),
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()
