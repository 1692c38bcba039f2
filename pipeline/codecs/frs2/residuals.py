"""What is coded of a tensor: the weighted residual of a prediction, or of none where that is smaller.

Shapes: B batch, X channels or score channels, (H, W) grid of a level.
"""

from __future__ import annotations

import torch
from torch import Tensor


def choose(
    plain: Tensor, prediction: Tensor | None, m: Tensor, given: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Use a prediction for the samples where it leaves less energy than there was.

    plain: the weighted residual without a prediction (B, X, H, W). prediction: None where there is none. m: the weights
    (B, H, W). given: which samples use it (B,), if that is stored. Return what is left, which samples use the
    prediction, and the energy before and after, (B,) each.
    """
    spare = plain.square()  # new memory takes a CPU more time than the arithmetic
    before = spare.sum(dim=(1, 2, 3))
    if prediction is None:
        return plain, torch.zeros_like(before, dtype=torch.bool) if given is None else given, before, before
    left = plain - torch.mul(m.sqrt()[:, None], prediction, out=spare)
    after = torch.square(left, out=spare).sum(dim=(1, 2, 3))
    used = after < before if given is None else given
    return _where(used, left, plain), used, before, torch.where(used, after, before)


def restore(residual: Tensor, root: Tensor, base: Tensor) -> Tensor:
    """Add a weighted residual (B, X, H, W) to base, without its weight m. root: m^-1/2 (B, H, W)."""
    return torch.addcmul(base, residual, root[:, None])


def switch(used: Tensor, prediction: Tensor | None) -> Tensor:
    """Return the prediction (B, X, H, W) of the samples that use it, else 0."""
    if prediction is None:
        return torch.zeros((1, 1, 1, 1), device=used.device)
    return _where(used, prediction, 0.0)


def _where(used: Tensor, yes: Tensor, no: Tensor | float) -> Tensor:
    """Choose for each sample. On a CPU, a tensor that is chosen for all samples is not copied."""
    if used.device.type == "cpu" and used.all():
        return yes
    if used.device.type == "cpu" and isinstance(no, Tensor) and not used.any():
        return no
    return torch.where(used[:, None, None, None], yes, no)
