"""Non-maximum suppression as mmcv/ops/csrc/pytorch/cpu/nms.cpp defines it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.mmdet_compat.ops.backend import at_least_float32, use_torchvision

BLOCK = 128  # boxes decided at once; their IoUs fit into the CPU's cache


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that no kept box with a higher score overlaps by more than the threshold.

    Boxes of equal score are ordered by index. A box suppresses another if IoU > threshold, not at equality. The IoU of
    two boxes without area is 0/0, which suppresses nothing.

    Args:
        boxes: (N, 4), x1 y1 x2 y2. Half precision is converted to float32.
        scores: (N,).
        iou_threshold: rounded to float32, as mmcv's C++ signature does.
        offset: 0, or 1 if a box's width is x2 - x1 + 1.

    Returns:
        (K,) int64 indices, by decreasing score, on the boxes' device.
    """
    boxes = at_least_float32(boxes.detach())
    scores = at_least_float32(scores.detach())  # float16 under AMP; the conversion does not change order or ties
    threshold = float(np.float32(iou_threshold))
    if offset == 0 and scores.dtype == boxes.dtype and use_torchvision(boxes):
        return torch.ops.torchvision.nms(boxes, scores, threshold)
    return torch_nms(boxes, scores, threshold, offset)


def torch_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> Tensor:
    """Compute `nms` in plain torch. Decide one block of boxes at a time, and remove the boxes that it suppresses."""
    order = scores.argsort(descending=True, stable=True)
    x1, y1, x2, y2 = boxes[order].T
    remaining = torch.stack((x1, y1, x2, y2, (x2 - x1 + offset) * (y2 - y1 + offset)))
    scratch = remaining.new_empty(3, min(BLOCK, len(order)) * len(order))
    kept = [order[:0]]
    while len(order):
        iou = _block_iou(remaining, offset, scratch)
        # 0.0 or 1.0, because torch reduces booleans several times slower.
        over = torch.gt(iou, threshold, out=iou)
        survives = _decide_block(over[:, :BLOCK])
        stays = survives @ over[:, BLOCK:] == 0
        kept.append(order[:BLOCK][survives > 0])
        order, remaining = order[BLOCK:][stays], remaining[:, BLOCK:][:, stays]
    return torch.cat(kept)


def _block_iou(boxes: Tensor, offset: int, scratch: Tensor) -> Tensor:
    """Return the IoU (B, M) of the first B = BLOCK boxes with all M boxes.

    The order of operations is that of mmcv's kernel, so results are bit-identical. `scratch` is reused memory, because
    page faults of new memory would take longer than the arithmetic.

    Args:
        boxes: (5, M), x1 y1 x2 y2 area.
        offset: 0 or 1, as in `nms`.
        scratch: (3, at least B * M), overwritten. The result is a part of it.
    """
    x1, y1, x2, y2, area = boxes
    left, top, right, bottom, head_area = boxes[:, :BLOCK, None]
    shape = (len(left), len(x1))
    width, height, other = scratch[:, : shape[0] * shape[1]].view(3, *shape)
    torch.minimum(right, x2, out=width).sub_(torch.maximum(left, x1, out=other)).add_(offset).clamp_(min=0)
    torch.minimum(bottom, y2, out=height).sub_(torch.maximum(top, y1, out=other)).add_(offset).clamp_(min=0)
    overlap = width.mul_(height)
    union = torch.add(head_area, area, out=other).sub_(overlap)
    return overlap.div_(union)


def _decide_block(over: Tensor) -> Tensor:
    """Return which of B boxes, ordered by decreasing score, survive: (B,) of 0.0 or 1.0.

    `over` (B, B) is 1.0 if the boxes of row and column overlap too much, otherwise 0.0.

    Box i survives unless a surviving box before it overlaps it. The rule is iterated, starting with all boxes. Box i is
    final after at most i iterations. In practice, a few iterations are enough for all boxes.
    """
    over = over.triu(1)
    survives = over.new_ones(len(over))
    while True:
        settled = (survives @ over == 0).to(over.dtype)
        if torch.equal(settled, survives):
            return survives
        survives = settled
