"""The samples of deformable convolution, as mmcv's modulated_deform_conv_cuda_kernel.cuh defines them.

A sample is the weighted sum of four pixels, so all samples of an image are one `embedding_bag` over its pixels, which
adds in a fixed order. Its derivatives by pixels and by weights are autograd's.

C channels, H x W input, P x Q output, G deformable groups, T = kernel taps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class Taps(NamedTuple):
    """Kernel size, stride, padding and dilation, each (y, x), and the number of deformable groups."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def sample(image: Tensor, offset: Tensor, mask: Tensor | None, taps: Taps) -> Tensor:
    """Return the samples (C * T, P * Q) of one image (C, H, W). Differentiable.

    offset: (2 * G * T, P, Q), y and x of each tap. mask: (G * T, P, Q) or None for factors of 1.
    """
    height, width = image.shape[1:]
    y, x = _places(offset, taps)  # (G, T, P * Q)
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    weights, pixels = _corners(y, x, (height, width))
    weights = torch.where(inside[..., None], weights, 0)  # also stops the gradient, as in mmcv's kernel
    if mask is not None:
        weights = weights * mask.reshape(y.shape)[..., None]
    first = torch.arange(taps.groups, device=y.device).view(-1, 1, 1, 1) * (height * width)
    table = image.reshape(taps.groups, -1, height * width).transpose(1, 2).reshape(taps.groups * height * width, -1)
    bags = (pixels + first).reshape(-1, 4)
    sums = embedding_bag(bags, table, mode="sum", per_sample_weights=weights.reshape(-1, 4))
    return sums.view(taps.groups, -1, y.shape[2], sums.shape[1]).permute(0, 3, 1, 2).reshape(-1, y.shape[2])


def _places(offset: Tensor, taps: Taps) -> tuple[Tensor, Tensor]:
    """Return the sampled coordinates y and x in pixels, each (G, T, P * Q)."""
    rows, columns = offset.shape[1:]
    moves = offset.reshape(taps.groups, -1, 2, rows, columns)
    found = []
    for axis, (count, other) in enumerate(((rows, columns), (columns, rows))):
        start = torch.arange(count, device=offset.device) * taps.stride[axis] - taps.padding[axis]
        tap = torch.arange(taps.kernel[axis], device=offset.device) * taps.dilation[axis]
        grid = (tap[:, None] + start).to(offset.dtype)  # (k, P) or (k, Q)
        if axis == 0:
            grid = grid[:, None, :, None].expand(-1, taps.kernel[1], -1, other)
        else:
            grid = grid[None, :, None, :].expand(taps.kernel[0], -1, other, -1)
        place = grid.reshape(-1, rows, columns) + moves[:, :, axis]
        found.append(place.flatten(2))
    return found[0], found[1]


def _corners(y: Tensor, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the weights of the four pixels around each place, and their numbers in the image; each (..., 4).

    A pixel outside the image has the weight 0.
    """
    low_y, low_x = y.detach().floor(), x.detach().floor()
    weights, numbers = [], []
    for row, weight_y in ((low_y, 1 - (y - low_y)), (low_y + 1, y - low_y)):
        for column, weight_x in ((low_x, 1 - (x - low_x)), (low_x + 1, x - low_x)):
            exists = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
            weights.append(torch.where(exists, weight_y * weight_x, 0))
            numbers.append(torch.where(exists, row * size[1] + column, 0).long())
    return torch.stack(weights, -1), torch.stack(numbers, -1)
