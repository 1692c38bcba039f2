"""CARAFE upsampling as mmcv/ops/csrc/common/cuda/carafe_naive_cuda_kernel.cuh defines it.

Each output position is a weighted sum of the K x K neighbourhood of its input position, with weights of its own
(https://arxiv.org/abs/1905.02188). The loop runs over the K * K neighbours, so no neighbourhood is copied.

N images, C channels, G groups, H x W input, S scale.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn.functional import pad

from pipeline.mmdet_compat.ops.backend import at_least_float32


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    *,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the upsampled features into `output` (N, C, H * S, W * S).

    features: (N, C, H, W). masks: (N, G * K * K, H * S, W * S), the weights. rfeatures: overwritten with what the
    backward op reads. routput, rmasks: buffers of mmcv's kernel, not used.
    """
    rfeatures.copy_(features)
    x, weights = at_least_float32(features), at_least_float32(masks)
    made = blocks(output.to(x.dtype).zero_(), group_size, scale_factor)
    for neighbour, weight, _ in taps(x, weights, kernel_size, group_size, scale_factor):
        made += neighbour * weight
    output.copy_(made.view(output.shape))


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    *,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of features and masks. Arguments as in the forward op."""
    x, weights = at_least_float32(rfeatures), at_least_float32(masks)
    grad = blocks(at_least_float32(grad_output), group_size, scale_factor)
    border = kernel_size // 2
    height, width = x.shape[2:]
    padded = x.new_zeros((*x.shape[:2], height + 2 * border, width + 2 * border))
    by_tap = grad_masks.view(len(x), group_size, kernel_size**2, *grad_masks.shape[2:])
    for number, (neighbour, weight, (row, column)) in enumerate(
        taps(x, weights, kernel_size, group_size, scale_factor)
    ):
        by_tap[:, :, number] = (grad * neighbour).sum(2).view(by_tap[:, :, number].shape)
        part = (grad * weight).sum((4, 6)).view(x.shape)
        padded[:, :, row : row + height, column : column + width] += part
    grad_input.copy_(padded[:, :, border : border + height, border : border + width])


def blocks(tensor: Tensor, groups: int, scale: int) -> Tensor:
    """View (N, C, H * S, W * S) as (N, G, C / G, H, S, W, S)."""
    height, width = tensor.shape[2] // scale, tensor.shape[3] // scale
    return tensor.reshape(len(tensor), groups, -1, height, scale, width, scale)


def taps(
    features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int
) -> Iterator[tuple[Tensor, Tensor, tuple[int, int]]]:
    """Yield, for each neighbour, its features and weights in the shape of `blocks`, and its row and column."""
    border = kernel // 2
    height, width = features.shape[2:]
    padded = pad(features, (border,) * 4)
    weights = masks.view(len(masks), groups, kernel**2, *masks.shape[2:])
    for row in range(kernel):
        for column in range(kernel):
            near = padded[:, :, row : row + height, column : column + width]
            neighbour = near.reshape(len(near), groups, -1, height, 1, width, 1)
            yield neighbour, blocks(weights[:, :, row * kernel + column], groups, scale), (row, column)
