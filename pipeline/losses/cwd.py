"""CWD: every channel as a distribution over positions, compared by KL divergence (Shu et al., ICCV 2021).

arXiv 2011.13256, equations 2 to 4, at the temperature 1 that mmrazor's detectors use. No position is weighted by the
richness map, so the cache must have been calibrated for it (docs/design.md, "Other losses").

Shape legend: B batch, C channels, (H, W) grid of one FPN level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.losses.base import Loss


def cwd_loss(teacher: Tensor, student: Tensor, inside: Tensor) -> Tensor:
    """Average KL(teacher | student) of one level over samples and channels. (B, C, H, W) twice, inside (B, H, W)."""
    outside = ~inside[:, None].expand_as(teacher).flatten(2)
    wanted, found = (
        torch.log_softmax(x.flatten(2).masked_fill(outside, -torch.inf), dim=2).masked_fill(outside, 0.0)
        for x in (teacher, student)
    )
    share = wanted.exp().masked_fill(outside, 0.0)
    return (share * (wanted - found)).sum() / (teacher.shape[0] * teacher.shape[1])


CWD = Loss("cwd", cwd_loss)
