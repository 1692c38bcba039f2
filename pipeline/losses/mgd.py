"""MGD: the student generates the teacher's features from its own with most positions masked (Yang et al., ECCV 2022).

Source: arXiv 2205.01529, equations 3 to 5; the reference implementation is yzd-v/MGD. Positions are not weighted by the
richness map, so the cache must be calibrated for this loss. Calibration measures it without masks.

Shapes: B batch, C teacher channels, C_s student channels, (H, W) grid of one FPN level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.losses.base import Loss

MASKED = 0.65  # share of positions that are masked; the paper's value for one-stage detectors


class MaskedGenerator(nn.Module):
    """Aligns the student's width, masks random positions, and generates the teacher's features with two convolutions.

    The masks come from torch's generator of the device, which stage 2 seeds at each step.
    """

    def __init__(self, own: int, channels: int) -> None:
        super().__init__()
        self.align = nn.Conv2d(own, channels, 1) if own != channels else nn.Identity()
        self.generate = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, student: Tensor) -> Tensor:
        """Return the generated features (B, C, H, W) of the student's (B, C_s, H, W)."""
        batch, _, height, width = student.shape
        kept = torch.rand((batch, 1, height, width), device=student.device) > MASKED
        return self.generate(self.align(student) * kept)


def mgd_loss(teacher: Tensor, generated: Tensor, inside: Tensor) -> Tensor:
    """Return the squared error, summed over channels and positions, averaged over samples. Both (B, C, H, W)."""
    return (inside[:, None] * (teacher - generated).square()).sum() / teacher.shape[0]


MGD = Loss("mgd", mgd_loss, adapters=True, module=MaskedGenerator)
