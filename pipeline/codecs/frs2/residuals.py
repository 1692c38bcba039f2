"""What is coded of a tensor: the weighted residual of a prediction, or of none where that is smaller.

Shapes: B batch, X channels or score channels, (H, W) grid of a level.
"""

from __future__ import annotations

import torch
from torch import Tensor


def choose(
    plain: Tensor, prediction: Tensor | None, m: Tensor, given: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Use a prediction for the samples where it leaves less energy than there was.

    plain: the weighted residual without a prediction (B, X, H, W). prediction: None where there is none. m: the weights
    (B, H, W). given: which samples use it (B,), if that is stored. Return the prediction, 0 where it is not used, what
    it leaves, which samples use it, and the energy before and after, (B,) each.
    """
    before = plain.square().sum(dim=(1, 2, 3))
    if prediction is None:
        unused = torch.zeros_like(before, dtype=torch.bool) if given is None else given
        return plain.new_zeros((1, 1, 1, 1)), plain, unused, before, before
    left = plain - m.sqrt()[:, None] * prediction
    after = left.square().sum(dim=(1, 2, 3))
    used = after < before if given is None else given
    if is_true(used.all()):
        return prediction, left, used, before, after
    left = torch.where(used[:, None, None, None], left, plain)
    return switch(used, prediction), left, used, before, torch.where(used, after, before)


def is_true(condition: Tensor) -> bool:
    """Return whether a condition is known to hold. A GPU is not asked, because that would wait for it."""
    return condition.device.type == "cpu" and bool(condition)


def restore(residual: Tensor, root: Tensor, base: Tensor) -> Tensor:
    """Add a weighted residual (B, X, H, W) to base, without its weight m. root: m^-1/2 (B, H, W)."""
    return torch.addcmul(base, residual, root[:, None])


def switch(used: Tensor, prediction: Tensor) -> Tensor:
    """Return the prediction (B, X, H, W) of the samples that use it, else 0."""
    return torch.where(used[:, None, None, None], prediction, 0.0)
