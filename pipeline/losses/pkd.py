"""PKD: features compared by their Pearson correlation, channel by channel (Cao et al., NeurIPS 2022).

arXiv 2207.02039, equation 4: both sides are normalised to zero mean and unit variance over the batch and all positions,
then compared by squared error. Every position counts alike, so the cache must have been calibrated for it
(docs/design.md, "Other losses").

Shape legend: B batch, C channels, (H, W) grid of one FPN level.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.losses.base import Loss

EPSILON = 1e-6  # beside the standard deviation, as in mmrazor


def pkd_loss(teacher: Tensor, student: Tensor, inside: Tensor) -> Tensor:
    """Compute half the mean squared difference of one level: 1 - r for each channel.

    teacher, student (B, C, H, W); inside (B, H, W).
    """
    weight = inside[:, None].to(student.dtype)
    count = weight.sum()
    difference = normalise(teacher, weight, count) - normalise(student, weight, count)
    return (weight * difference.square()).sum() / (2 * count * teacher.shape[1])


def normalise(x: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    """Scale x (B, C, H, W) to zero mean and unit variance of each channel over the positions of weight 1."""
    mean = (weight * x).sum(dim=(0, 2, 3), keepdim=True) / count
    variance = (weight * (x - mean).square()).sum(dim=(0, 2, 3), keepdim=True) / (count - 1).clamp_min(1)
    # The root of zero has no gradient.
    return (x - mean) / (variance.clamp_min(EPSILON**2).sqrt() + EPSILON)


PKD = Loss("pkd", pkd_loss)
