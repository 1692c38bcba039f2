"""Compute RoIAlign's sampling weights as a sparse matrix of output bins by pixels.

The arithmetic and its order are those of mmcv/ops/csrc/common/cuda/roi_align_cuda_kernel.cuh and of
bilinear_interpolate in mmcv/ops/csrc/common/pytorch_cuda_helper.hpp.

N = images, H x W = feature map, K = boxes, P x Q = output bins, S = sampling points of all boxes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pooling(NamedTuple):
    """The pooling arguments of `roi_align_forward`."""

    height: int
    width: int
    scale: float
    sampling_ratio: int
    aligned: bool


class SparseRows(NamedTuple):
    """A sparse matrix in rows. Row r has the entries starts[r] to starts[r + 1]. Entries of equal columns are added."""

    columns: Tensor  # (E,) int64
    weights: Tensor  # (E,)
    starts: Tensor  # (rows + 1,) int64

    def transpose(self, columns: int) -> SparseRows:
        """Return the transposed matrix. `columns`: the number of columns of this matrix."""
        lengths = self.starts.diff()
        rows = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        order = self.columns.argsort(stable=True)
        counts = torch.bincount(self.columns, minlength=columns)
        return SparseRows(rows[order], self.weights[order], _starts(counts))


class Axis(NamedTuple):
    """One axis of every box, each (K,): its start, the length of a bin, and the number of sampling points per bin."""

    start: Tensor
    bin_size: Tensor
    points: Tensor


def bin_weights(rois: Tensor, map_size: tuple[int, int], pooling: Pooling) -> SparseRows:
    """Return the matrix (K*P*Q, N*H*W) that averages bilinear samples over each bin of each box.

    Args:
        rois: (K, 5), image index and x1 y1 x2 y2. The weights have its type.
        map_size: H, W.
        pooling: P, Q and the sampling rules.
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
    # The kernel's ceilf first rounds to float. A bin of negative or zero size has no samples.
    adaptive = bin_size.float().ceil().long().clamp(min=0)
    fixed = torch.full_like(adaptive, pooling.sampling_ratio)
    return Axis(start, bin_size, fixed if pooling.sampling_ratio > 0 else adaptive)


def _enumerate_points(per_bin: Tensor, points_x: Tensor, pooling: Pooling) -> tuple[Tensor, ...]:
    """Return box, bin row, point row, bin column and point column of all S points. A bin's points are consecutive."""
    per_box = per_bin * (pooling.height * pooling.width)
    box = torch.repeat_interleave(torch.arange(len(per_box), device=per_box.device), per_box)
    number = torch.arange(len(box), device=box.device) - _starts(per_box)[box]
    bin_number, point = number // per_bin[box], number % per_bin[box]
    wide = points_x[box]
    return box, bin_number // pooling.width, point // wide, bin_number % pooling.width, point % wide


def _positions(axis: Axis, box: Tensor, bin_number: Tensor, point: Tensor) -> Tensor:
    """Return the coordinate of each point, (S,). Points are the centres of equal parts of their bin."""
    bin_size = axis.bin_size[box]
    return axis.start[box] + bin_number * bin_size + (point + 0.5) * bin_size / axis.points[box]


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the two pixels next to a position, the weight of the second, and whether the position counts; each (S,).

    A position from -1 to `size` that is outside the map has the value of the border pixel. Others have the value 0.
    """
    inside = (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    low = position.long()
    return low, (low + 1).clamp(max=size - 1), position - low, inside


def _starts(lengths: Tensor) -> Tensor:
    """Return the start of each of consecutive ranges, and the end of the last."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
