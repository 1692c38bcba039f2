"""The richness map and the two losses of "Distilling Object Detectors with Feature Richness" (NeurIPS 2021).

Source: arXiv 2111.00674, section 3. The reference implementation is duzhixing/FRS.
Shapes: B batch, C channels, K score channels, (H, W) grid of one FPN level.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.losses.base import Loss

TINY = torch.finfo(torch.float32).tiny


def frs_map(scores: Tensor) -> Tensor:
    """Compute the richness map (B, H, W), the largest sigmoid class score (B, K, H, W) at each position."""
    return scores.amax(dim=1)


def feature_loss(teacher: Tensor, adapted: Tensor, richness: Tensor) -> Tensor:
    """Compute sum(m (y - a)^2) / sum(m) of one level; y, a (B, C, H, W), m (B, H, W). The result is 0 if m is 0."""
    return _WeightedSquares.apply(adapted, teacher, richness) / richness.sum().clamp_min(TINY)


def score_loss(teacher: Tensor, logits: Tensor, richness: Tensor) -> Tensor:
    """Compute sum(m BCE(sigmoid(s), t)) / sum(m) of one level; t, s (B, K, H, W), m (B, H, W).

    A decoded t may be slightly outside [0, 1]. BCE with logits is linear in t, so t is not clipped.
    """
    return _WeightedEntropy.apply(logits, teacher, richness) / richness.sum().clamp_min(TINY)


class _WeightedSquares(torch.autograd.Function):
    """sum(m (y - a)^2) with its gradient for a alone. autograd takes four times as long, and keeps two more tensors."""

    @staticmethod
    def forward(ctx: Any, adapted: Tensor, teacher: Tensor, richness: Tensor) -> Tensor:
        ctx.save_for_backward(adapted, teacher, richness)
        return (adapted - teacher).square_().mul_(richness[:, None]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        adapted, teacher, richness = ctx.saved_tensors
        return (adapted - teacher).mul_((2 * gradient * richness)[:, None]), None, None


class _WeightedEntropy(torch.autograd.Function):
    """sum(m (softplus(s) - t s)) with its gradient m (sigmoid(s) - t) for s alone."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher: Tensor, richness: Tensor) -> Tensor:
        ctx.save_for_backward(logits, teacher, richness)
        return F.softplus(logits).addcmul_(teacher, logits, value=-1).mul_(richness[:, None]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, teacher, richness = ctx.saved_tensors
        return torch.sigmoid(logits).sub_(teacher).mul_((gradient * richness)[:, None]), None, None


# In every profile of the frs codec, the step of the features serves FEATURE, and the step of the scores serves SCORE.
FEATURE = Loss("feature", feature_loss, weighted=True, adapters=True, profiles=("frs", "universal"))
SCORE = Loss("score", score_loss, compares="score", weighted=True, profiles=("frs", "universal"))
