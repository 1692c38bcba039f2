"""A distillation loss: a function of one FPN level, and its requirements on student and cache.

Shapes: B batch, X channels or score channels, (H, W) grid of one FPN level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.records import TeacherOutput

LevelLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """A distillation loss. Call it with the teacher's output and the student's tensors of all levels.

    name: the key in `probe_error` of codec.json.
    level: function that computes the loss of one level, a scalar. Its arguments are the teacher's (B, X, H, W), the
        student's (B, X, H, W) and a weight (B, H, W): the richness map if `weighted`, otherwise a bool mask of the
        positions inside each sample's own grid.
    compares: 'feature', 'score' (the teacher's probabilities and the student's logits), or 'box' (logits of box
        distributions).
    adapters: whether trained modules are applied to the student's features first, by default 3x3 convolutions.
    module: makes the trained module of one level from (student's width, teacher's width), if it is another one.
    profiles: the profiles of the frs codec whose quantiser step is chosen for this loss.
    """

    name: str
    level: LevelLoss
    compares: Literal["feature", "score", "box"] = "feature"
    weighted: bool = False
    adapters: bool = False
    module: Callable[[int, int], nn.Module] | None = None
    profiles: tuple[str, ...] = ("universal",)

    def __call__(self, target: TeacherOutput, student: list[Tensor]) -> Tensor:
        """Sum the unweighted loss over the levels, in float32 also under AMP.

        student: [(B, X, H_l, W_l)] on the target's canvas; logits if scores are compared.
        """
        weights = target.frs if self.weighted else target.inside()
        levels = zip(target.values(self.compares), student, weights)
        return torch.stack([self.level(teacher, own.float(), weight) for teacher, own, weight in levels]).sum()
