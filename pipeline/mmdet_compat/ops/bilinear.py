"""Where RoIAlign samples a feature map, as a sparse matrix of output bins by pixels.

The arithmetic and its order are those of mmcv/ops/csrc/common/cuda/roi_align_cuda_kernel.cuh and of
bilinear_interpolate in mmcv/ops/csrc/common/pytorch_cuda_helper.hpp.

N = images, H x W = feature map, K = boxes, P x Q = output bins, S = sampling points of all boxes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pooling(NamedTuple):
    """What `roi_align_forward` is told about its boxes; see there."""

    height: int
    width: int
    scale: float
    sampling_ratio: int
    aligned: bool


class SparseRows(NamedTuple):
    """A sparse matrix row by row; row r holds entries starts[r] to starts[r + 1]; equal columns add up."""

    columns: Tensor  # (E,) int64
    weights: Tensor  # (E,)
    starts: Tensor  # (rows + 1,) int64

    def transpose(self, columns: int) -> SparseRows:
        """The same matrix column by column; `columns` is their number."""
        lengths = self.starts.diff()
        rows = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        order = self.columns.argsort(stable=True)
        counts = torch.bincount(self.columns, minlength=columns)
        return SparseRows(rows[order], self.weights[order], _starts(counts))


class Axis(NamedTuple):
    """One axis of every box, each (K,): where it starts, how long a bin is, how many points sample a bin."""

    start: Tensor
    bin_size: Tensor
    points: Tensor


def bin_weights(rois: Tensor, map_size: tuple[int, int], pooling: Pooling) -> SparseRows:
    """The matrix (K*P*Q, N*H*W) that averages bilinear samples over each bin of each box.

    Args:
        rois: (K, 5), image index and x1 y1 x2 y2; its type is that of the weights.
        map_size: H, W.
        pooling: P, Q and the conventions.
    """
    y_axis = _axis(rois[:, 2], rois[:, 4], pooling.height, pooling)
    x_axis = _axis(rois[:, 1], rois[:, 3], pooling.width, pooling)
    per_bin = y_axis.points * x_axis.points
    box, bin_y, point_y, bin_x, point_x = _enumerate_points(per_bin, x_axis.points, pooling)
    top, bottom, weight_y, inside_y = _neighbours(_positions(y_axis, box, bin_y, point_y), map_size[0])
    left, right, weight_x, inside_x = _neighbours(_positions(x_axis, box, bin_x, point_x), map_size[1])

    first_row = rois[:, 0].long()[box] * map_size[0]
    above, below = (first_row + top) * map_size[1], (first_row + bottom) * map_size[1]
    columns = torch.stack((above + left, above + right, below + left, below + right), dim=1)
    share = (inside_y & inside_x) / per_bin[box].to(rois.dtype)
    upper, lower = (1 - weight_y) * share, weight_y * share
    weights = torch.stack((upper * (1 - weight_x), upper * weight_x, lower * (1 - weight_x), lower * weight_x), dim=1)
    entries = 4 * per_bin.repeat_interleave(pooling.height * pooling.width)
    return SparseRows(columns.flatten(), weights.flatten(), _starts(entries))


def _axis(low: Tensor, high: Tensor, bins: int, pooling: Pooling) -> Axis:
    shift = 0.5 if pooling.aligned else 0.0
    start = low * pooling.scale - shift
    length = high * pooling.scale - shift - start
    if not pooling.aligned:
        length = length.clamp(min=1)
    bin_size = length / bins
    # The kernel's ceilf rounds to float first; a size that is negative or zero takes no sample.
    adaptive = bin_size.float().ceil().long().clamp(min=0)
    fixed = torch.full_like(adaptive, pooling.sampling_ratio)
    return Axis(start, bin_size, fixed if pooling.sampling_ratio > 0 else adaptive)


def _enumerate_points(per_bin: Tensor, points_x: Tensor, pooling: Pooling) -> tuple[Tensor, ...]:
    """Box, bin row, point row, bin column and point column of all S points; a bin's are neighbours."""
    per_box = per_bin * (pooling.height * pooling.width)
    box = torch.repeat_interleave(torch.arange(len(per_box), device=per_box.device), per_box)
    number = torch.arange(len(box), device=box.device) - _starts(per_box)[box]
    bin_number, point = number // per_bin[box], number % per_bin[box]
    wide = points_x[box]
    return box, bin_number // pooling.width, point // wide, bin_number % pooling.width, point % wide


def _positions(axis: Axis, box: Tensor, bin_number: Tensor, point: Tensor) -> Tensor:
    """Coordinate of each point, (S,): points divide their bin evenly and sit in the middle of their part."""
    bin_size = axis.bin_size[box]
    return axis.start[box] + bin_number * bin_size + (point + 0.5) * bin_size / axis.points[box]


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two pixels a position lies between, the weight of the second, and whether it counts; each (S,).

    A position outside the map counts as the border pixel down to -1 and up to `size`, as zero further out.
    """
    inside = (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    low = position.long()
    return low, (low + 1).clamp(max=size - 1), position - low, inside


def _starts(lengths: Tensor) -> Tensor:
    """Where each of consecutive stretches starts, and where the last ends."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
