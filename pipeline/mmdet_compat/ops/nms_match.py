"""NMS with the boxes that each kept box suppresses, as mmcv/ops/csrc/pytorch/cpu/nms.cpp defines `nms_match`."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return one group for each kept box, by decreasing score: its index, then those of the boxes that it suppresses.

    Boxes of equal score are ordered by index. A box suppresses another if IoU >= threshold.

    Args:
        dets: (N, 5), x1 y1 x2 y2 score, on the CPU.
        iou_threshold: rounded to float32, as mmcv's C++ signature does.
    """
    x1, y1, x2, y2, scores = dets.detach().numpy().T
    areas, threshold = (x2 - x1) * (y2 - y1), np.float32(iou_threshold)
    left = np.argsort(-scores, kind="stable")
    groups = []
    with np.errstate(invalid="ignore"):  # 0/0 of two boxes without area suppresses nothing
        while len(left):
            first, others = left[0], left[1:]
            width = np.minimum(x2[first], x2[others]) - np.maximum(x1[first], x1[others])
            height = np.minimum(y2[first], y2[others]) - np.maximum(y1[first], y1[others])
            overlap = width.clip(0) * height.clip(0)
            matched = overlap / (areas[first] + areas[others] - overlap) >= threshold
            groups.append([int(first), *map(int, others[matched])])
            left = others[~matched]
    return groups
