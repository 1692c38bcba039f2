"""RoIAlign with average pooling as mmcv/ops/csrc/common/cuda/roi_align_cuda_kernel.cuh defines it.

RoIAlign is linear in the features: an output bin is a weighted sum of pixels, and the weights depend only on the boxes.
The boxes therefore form a sparse matrix (bins x pixels). The forward op multiplies by the matrix, the backward op by
its transpose. Both use `embedding_bag`, which adds in a fixed order on every device.

N = images, C = channels, H x W = feature map, K = boxes, P x Q = output bins.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from pipeline.mmdet_compat.ops.backend import at_least_float32, unsupported, use_torchvision
from pipeline.mmdet_compat.ops.bilinear import Pooling, SparseRows, bin_weights

AVERAGE = 1  # mmcv/ops/roi_align.py passes 'max' as 0


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the pooled features of each box into `output`.

    Half precision is converted to float32. With adaptive sampling, a box without area or of negative size gives zeros,
    as on CUDA.

    Args:
        input: (N, C, H, W).
        rois: (K, 5), index into N and x1 y1 x2 y2 in image pixels.
        output: (K, C, P, Q), overwritten.
        argmax_y, argmax_x: not used; only max pooling needs them.
        aligned_height, aligned_width: P and Q.
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: sampling points per bin and axis; 0: ceil(box size / bins), for each box and axis.
        pool_mode: must be 1, average.
        aligned: shift by half a pixel. If False, boxes are at least one feature pixel wide and high.

    Raises:
        UnsupportedOpError: pool_mode is 0, maximum.
    """
    pooling = Pooling(aligned_height, aligned_width, spatial_scale, sampling_ratio, aligned)
    _refuse_max(pool_mode)
    features = at_least_float32(input)
    pool = torchvision_roi_align if use_torchvision(features) else torch_roi_align
    output.copy_(pool(features, rois.to(features.dtype), pooling))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of the features into `grad_input` (N, C, H, W); `grad_output` is (K, C, P, Q).

    The other arguments and errors are those of the forward op. Boxes get no gradient, as in mmcv.
    """
    pooling = Pooling(aligned_height, aligned_width, spatial_scale, sampling_ratio, aligned)
    _refuse_max(pool_mode)
    grad = at_least_float32(grad_output)
    unpool = torchvision_roi_align_grad if use_torchvision(grad) else torch_roi_align_grad
    grad_input.copy_(unpool(grad, rois.to(grad.dtype), pooling, grad_input.shape))


def torch_roi_align(features: Tensor, rois: Tensor, pooling: Pooling) -> Tensor:
    """Compute `roi_align_forward` in plain torch. Return (K, C, P, Q)."""
    n, c, h, w = features.shape
    pixels = features.permute(0, 2, 3, 1).reshape(n * h * w, c)
    pooled = _multiply(bin_weights(rois, (h, w), pooling), pixels)
    return pooled.view(len(rois), pooling.height, pooling.width, c).permute(0, 3, 1, 2)


def torch_roi_align_grad(grad: Tensor, rois: Tensor, pooling: Pooling, shape: torch.Size) -> Tensor:
    """Compute `roi_align_backward` in plain torch. Return (N, C, H, W), which is `shape`."""
    n, c, h, w = shape
    bins = grad.permute(0, 2, 3, 1).reshape(-1, c)
    rows = bin_weights(rois, (h, w), pooling).transpose(n * h * w)
    return _multiply(rows, bins).view(n, h, w, c).permute(0, 3, 1, 2)


def torchvision_roi_align(features: Tensor, rois: Tensor, pooling: Pooling) -> Tensor:
    """Compute `roi_align_forward` with torchvision. Return (K, C, P, Q)."""
    height, width, scale, ratio, aligned = pooling
    return torch.ops.torchvision.roi_align(features, rois, scale, height, width, ratio, aligned)


def torchvision_roi_align_grad(grad: Tensor, rois: Tensor, pooling: Pooling, shape: torch.Size) -> Tensor:
    """Compute `roi_align_backward` with torchvision. Return (N, C, H, W), which is `shape`."""
    height, width, scale, ratio, aligned = pooling
    backward = torch.ops.torchvision._roi_align_backward
    return backward(grad, rois, scale, height, width, *shape, ratio, aligned)


def _multiply(rows: SparseRows, table: Tensor) -> Tensor:
    """Return the product of a sparse matrix (R, T) and a dense one (T, C)."""
    if rows.columns.numel() == 0:  # embedding_bag does not accept an empty table
        return table.new_zeros(len(rows.starts) - 1, table.size(1))
    columns, weights, starts = rows
    return embedding_bag(columns, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


def _refuse_max(pool_mode: int) -> None:
    if pool_mode != AVERAGE:
        raise unsupported("roi_align with pool_mode='max'")
