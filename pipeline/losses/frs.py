"""The richness map and the two losses of "Distilling Object Detectors with Feature Richness" (NeurIPS 2021).

Source: arXiv 2111.00674, section 3. The reference implementation is duzhixing/FRS.
Shapes: B batch, C channels, K score channels, (H, W) grid of one FPN level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses.base import Loss

TINY = torch.finfo(torch.float32).tiny


def frs_map(scores: Tensor) -> Tensor:
    """Compute the richness map (B, H, W), the largest sigmoid class score (B, K, H, W) at each position."""
    return scores.amax(dim=1)


def feature_loss(teacher: Tensor, adapted: Tensor, richness: Tensor) -> Tensor:
    """Compute sum(m (y - a)^2) / sum(m) of one level; y, a (B, C, H, W), m (B, H, W). The result is 0 if m is 0."""
    return (richness[:, None] * (teacher - adapted).square()).sum() / richness.sum().clamp_min(TINY)


def score_loss(teacher: Tensor, logits: Tensor, richness: Tensor) -> Tensor:
    """Compute sum(m BCE(sigmoid(s), t)) / sum(m) of one level; t, s (B, K, H, W), m (B, H, W).

    A decoded t may be slightly outside [0, 1]. BCE with logits is linear in t, so t is not clipped.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, teacher, reduction="none")
    return (richness[:, None] * entropy).sum() / richness.sum().clamp_min(TINY)


# In every profile of the frs codec, the step of the features serves FEATURE, and the step of the scores serves SCORE.
FEATURE = Loss("feature", feature_loss, weighted=True, adapters=True, profiles=("frs", "universal"))
SCORE = Loss("score", score_loss, compares="score", weighted=True, profiles=("frs", "universal"))
