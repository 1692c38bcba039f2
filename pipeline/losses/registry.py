"""The losses that a cache can serve, by name, and what each of them compares with what."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.losses.cwd import cwd_loss
from pipeline.losses.frs import feature_loss, score_loss
from pipeline.losses.pkd import pkd_loss
from pipeline.records import TeacherOutput

# Each takes one level: the teacher's (B, X, H, W), the student's, and a weight or mask (B, H, W).
WEIGHTED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"feature": feature_loss, "score": score_loss}
UNWEIGHTED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"pkd": pkd_loss, "cwd": cwd_loss}
FEATURE_LOSSES = {"frs": "feature", "pkd": "pkd", "cwd": "cwd"}  # distill.feature_loss -> name here
ADAPTED = ("feature",)  # behind 3x3 adapters; the others compare the student's own features


def compared(name: str) -> str:
    """The tensor that a loss compares: 'feature' or 'score'."""
    return "score" if name == "score" else "feature"


def distillation_loss(name: str, target: TeacherOutput, own: list[Tensor]) -> Tensor:
    """A loss summed over the levels, before its weight. Computed in float32 also under AMP.

    own: what the student has, [(B, X, H_l, W_l)] on the target's canvas; logits for 'score'.
    """
    values = [x.float() for x in own]
    if name in WEIGHTED:
        levels = map(WEIGHTED[name], target.values(name), values, target.frs)
    else:
        levels = map(UNWEIGHTED[name], target.features, values, target.inside())
    return torch.stack(list(levels)).sum()
