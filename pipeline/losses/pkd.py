"""PKD: Pearson correlation of the features, channel by channel (Cao et al., NeurIPS 2022).

Source: arXiv 2207.02039, equation 4. Both tensors are normalised to zero mean and unit variance over the batch and all
positions. The loss is their squared error. All positions have the same weight, so the cache must be calibrated for this
loss (docs/design.md, "Other losses").

Shapes: B batch, C channels, (H, W) grid of one FPN level.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.losses.base import Loss

EPSILON = 1e-6  # added to the standard deviation, as in mmrazor


def pkd_loss(teacher: Tensor, student: Tensor, inside: Tensor) -> Tensor:
    """Compute half the mean squared difference of one level, which is 1 - r, averaged over channels.

    teacher, student (B, C, H, W); inside (B, H, W).
    """
    weight = inside[:, None].to(student.dtype)
    count = weight.sum()
    difference = normalise(teacher, weight, count) - normalise(student, weight, count)
    return (weight * difference.square()).sum() / (2 * count * teacher.shape[1])


def normalise(x: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    """Scale each channel of x (B, C, H, W) to zero mean and unit variance over the positions of weight 1."""
    mean = (weight * x).sum(dim=(0, 2, 3), keepdim=True) / count
    variance = (weight * (x - mean).square()).sum(dim=(0, 2, 3), keepdim=True) / (count - 1).clamp_min(1)
    # The gradient of sqrt is infinite at 0.
    return (x - mean) / (variance.clamp_min(EPSILON**2).sqrt() + EPSILON)


PKD = Loss("pkd", pkd_loss)
