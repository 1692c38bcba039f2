"""Sigmoid focal loss as mmcv/ops/csrc/common/cuda/sigmoid_focal_loss_cuda_kernel.cuh defines it.

mmdet's FocalLoss uses this op on CUDA. On the CPU it uses its own formula.
N = positions, C = classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pipeline.mmdet_compat.ops.backend import at_least_float32


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the loss of each logit into `output` (https://arxiv.org/abs/1708.02002, equation 5).

    The kernel's log(max(1 - p, FLT_MIN)) is computed as logsigmoid(-x), which is exact for large logits.

    Args:
        input: (N, C) logits.
        target: (N,) int64 labels; those outside 0..C-1 are background.
        weight: (C,) factor by label, or empty for none; background keeps the factor 1.
        output: (N, C), overwritten.
        gamma, alpha: the paper's focusing and balance parameters.
    """
    x = at_least_float32(input)
    positive = -alpha * torch.sigmoid(-x).pow(gamma) * logsigmoid(x)
    negative = -(1 - alpha) * torch.sigmoid(x).pow(gamma) * logsigmoid(-x)
    loss = torch.where(_is_label(target, x), positive, negative)
    output.copy_(_weighted(loss, target, weight))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the derivative of each loss by its logit into `grad_input` (N, C). Other arguments as in the forward op."""
    x = at_least_float32(input)
    p, q = torch.sigmoid(x), torch.sigmoid(-x)  # q = 1 - p without cancellation
    positive = -alpha * q.pow(gamma) * (q - gamma * p * logsigmoid(x))
    negative = -(1 - alpha) * p.pow(gamma) * (gamma * q * logsigmoid(-x) - p)
    grad = torch.where(_is_label(target, x), positive, negative)
    grad_input.copy_(_weighted(grad, target, weight))


def _is_label(target: Tensor, x: Tensor) -> Tensor:
    """Return the mask (N, C) of the logit of each position's label."""
    return target[:, None] == torch.arange(x.size(1), device=x.device)


def _weighted(values: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    if weight.numel() == 0:
        return values
    is_class = (target >= 0) & (target < len(weight))
    factor = torch.where(is_class, weight[target.clamp(0, len(weight) - 1)], 1)
    return values * factor[:, None]
