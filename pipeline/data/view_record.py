"""Make the record of a view: sizes, flip, checksums, thumbnail."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from google_crc32c import value as crc32c
from torch import Tensor

from pipeline.records import FLIPS, THUMBNAIL, ViewRecord

PAD = 32  # each view is padded to multiples of this, before it is batched


def padded(shape: tuple[int, ...]) -> tuple[int, int]:
    """Round (H, W) up to multiples of PAD."""
    return (-(-shape[0] // PAD) * PAD, -(-shape[1] // PAD) * PAD)


def make_record(
    image_id: int, view: int, results: dict[str, Any], inputs: Tensor, ori_shape: tuple, thumbnail: bool
) -> ViewRecord:
    """Make the ViewRecord of a view from mmdet's transformed results and the packed pixels."""
    image = results["img"]
    direction = results.get("flip_direction") if results.get("flip") else None
    boxes, labels = results.get("gt_bboxes"), results.get("gt_bboxes_labels")
    digest = 0
    if boxes is not None:
        tensor = boxes.tensor if hasattr(boxes, "tensor") else torch.as_tensor(boxes)
        digest = crc32c(tensor.float().numpy().tobytes() + np.asarray(labels, np.int64).tobytes())
    sides = (THUMBNAIL, THUMBNAIL)
    small = cv2.resize(image, sides, interpolation=cv2.INTER_AREA) if thumbnail else np.zeros((*sides, 3))
    return ViewRecord(
        image_id=image_id,
        view=view,
        shape=image.shape[:2],
        ori_shape=ori_shape,
        pad_shape=padded(image.shape),
        flip=FLIPS.index(direction or "none"),
        pixels=crc32c(inputs.numpy().tobytes()),
        boxes=digest,
        thumbnail=np.clip(small, 0, 255).astype(np.uint8),
    )
