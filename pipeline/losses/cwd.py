"""CWD: KL divergence between channels, each a distribution over positions (Shu et al., ICCV 2021).

Source: arXiv 2011.13256, equations 2 to 4, with temperature 1 as in mmrazor's detectors. Positions are not weighted by
the richness map, so the cache must be calibrated for this loss (docs/design.md, "Other losses").

Shapes: B batch, C channels, (H, W) grid of one FPN level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.losses.base import Loss


def cwd_loss(teacher: Tensor, student: Tensor, inside: Tensor) -> Tensor:
    """Return the mean of KL(teacher | student) over samples and channels. teacher, student (B, C, H, W)."""
    outside = ~inside[:, None].expand_as(teacher).flatten(2)
    wanted, found = (
        torch.log_softmax(x.flatten(2).masked_fill(outside, -torch.inf), dim=2).masked_fill(outside, 0.0)
        for x in (teacher, student)
    )
    share = wanted.exp().masked_fill(outside, 0.0)
    return (share * (wanted - found)).sum() / (teacher.shape[0] * teacher.shape[1])


CWD = Loss("cwd", cwd_loss)
