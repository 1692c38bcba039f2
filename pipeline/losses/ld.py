"""LD: KL divergence of the box distributions that GFL predicts for the four sides (Zheng et al., CVPR 2022).

Source: arXiv 2102.12252, equations 2 to 5, with the paper's temperature. LD weights the student's positive positions by
their scores. Here every position is weighted by the teacher's richness map. A live teacher gives the distributions, or
a cache made with `cache.codec.boxes=True`.

Shapes: B batch, N bins of a side, (H, W) grid of one FPN level.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.losses.base import Loss
from pipeline.losses.frs import TINY

SIDES, TEMPERATURE = 4, 10.0


def ld_loss(teacher: Tensor, student: Tensor, richness: Tensor) -> Tensor:
    """Compute sum(m KL(p_t | p_s) T^2) / sum(m) of one level, averaged over sides.

    teacher, student (B, 4 N, H, W): logits of N bins of each side; m (B, H, W). p is the softmax of logits / T.
    """
    batch, _, height, width = teacher.shape
    wanted, found = (
        torch.log_softmax(x.reshape(batch, SIDES, -1, height, width) / TEMPERATURE, dim=2) for x in (teacher, student)
    )
    divergence = (wanted.exp() * (wanted - found)).sum(dim=2).mean(dim=1) * TEMPERATURE**2
    return (richness * divergence).sum() / richness.sum().clamp_min(TINY)


def bins_of(head: nn.Module) -> int:
    """Return the number of bins N that a GFL head predicts for each side. Raise ConfigError for another head."""
    largest = getattr(head, "reg_max", None)
    if not isinstance(largest, int):
        raise ConfigError(
            f"distill.box_weight: {type(head).__name__} predicts no box distributions; expected a GFL head (GFLHead, "
            "LDHead), or box_weight=0"
        )
    return largest + 1


def box_distributions(head: nn.Module, output: Any) -> list[Tensor]:
    """Return the logits of the box distributions, (B, 4 N, H_l, W_l) of every level, from the output of a GFL head."""
    boxes, bins = list(output[1]), bins_of(head)
    if boxes[0].shape[1] != SIDES * bins:
        raise ConfigError(
            f"{type(head).__name__}: its second output has {boxes[0].shape[1]} channels, expected {SIDES} sides x "
            f"{bins} bins"
        )
    return boxes


LD = Loss("ld", ld_loss, compares="box", weighted=True)
