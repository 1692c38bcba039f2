"""Views for the benchmarks: generated scenes, and photographs that were not used to develop this project."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import skimage.data
import torch
from torch import Tensor

from demo.coco_names import ALL_CATEGORIES
from demo.scenes import render

PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "hubble_deep_field", "retina")  # bundled with scikit-image
SIZES = {
    "96x64": (96, 64),
    "288x192": (288, 192),
    "320": (320, 320),
    "800x1067": (1067, 800),
}  # largest (long, short) side


def resize(image: np.ndarray, scale: tuple[int, int]) -> Tensor:
    """Resize (H, W, 3) BGR to (3, h, w) uint8 within the scale, like mmdet's keep-ratio Resize."""
    height, width = image.shape[:2]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    image = cv2.resize(image, (int(width * factor + 0.5), int(height * factor + 0.5)))
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def scene(index: int, size: str, split: str = "val", categories: Sequence[str] = ALL_CATEGORIES) -> Tensor:
    """Render a 4:3 landscape scene at a size."""
    scale = SIZES[size]
    sides = (int(max(scale) * 0.75), max(scale))
    return resize(render(77, split, index, tuple(categories), sides=sides, portrait=False).image, scale)


def photograph(index: int, size: str) -> Tensor:
    """Return a photograph at a size."""
    name = PHOTOGRAPHS[index % len(PHOTOGRAPHS)]
    return resize(getattr(skimage.data, name)()[..., ::-1], SIZES[size])
