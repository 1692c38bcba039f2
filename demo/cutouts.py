"""The atlas of cut-outs, and the changes of geometry and colour that a scene applies to them."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import cv2
import numpy as np

ATLAS = Path(__file__).resolve().parent / "atlas"
DISTRACTOR = "distractor"


def _pyramid(bgra: np.ndarray) -> list[np.ndarray]:
    """Return premultiplied uint8 copies of a cut-out, each half the size of the previous one.

    With premultiplied colour, the colour of transparent pixels does not affect edges. The smaller copies prevent
    aliasing of small cut-outs, because a warp reads at most 2x2 pixels.
    """
    image = bgra.astype(np.float32)
    image[..., :3] *= image[..., 3:] / 255.0
    levels = [np.floor(image + 0.5).astype(np.uint8)]
    while min(levels[-1].shape[:2]) > 12:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    return levels


@functools.cache
def load_atlas() -> dict[str, list[list[np.ndarray]]]:
    """Load the cut-outs by category name or 'distractor'. Each is a pyramid of (H, W, 4) premultiplied BGRA uint8."""
    atlas: dict[str, list[list[np.ndarray]]] = {}
    for item in json.loads((ATLAS / "index.json").read_text()):
        bgra = cv2.imread(str(ATLAS / item["file"]), cv2.IMREAD_UNCHANGED)
        if bgra is None or bgra.ndim != 3 or bgra.shape[2] != 4:
            raise ValueError(f"{item['file']}: expected an image with an alpha channel")
        atlas.setdefault(item["category"], []).append(_pyramid(bgra))
    return atlas


def transform(pyramid: list[np.ndarray], side: float, angle: float, flip: bool, stretch: float) -> np.ndarray:
    """Scale one cut-out to ``side``, rotate it, and mirror it if ``flip``.

    Args:
        pyramid: one cut-out of ``load_atlas``.
        side: longer side before the rotation, in pixels.
        angle: degrees, counter-clockwise.
        flip: mirror left to right.
        stretch: width over height relative to the original.

    Returns:
        (h, w, 4) premultiplied BGRA uint8 on the rotated cut-out's bounding canvas.
    """
    full = max(pyramid[0].shape[:2])
    level = 0
    while level + 1 < len(pyramid) and max(pyramid[level + 1].shape[:2]) >= side:
        level += 1
    source = pyramid[level]
    height, width = source.shape[:2]
    scale = side / full * (pyramid[0].shape[1] / width)
    scale_x, scale_y = scale * math.sqrt(stretch), scale / math.sqrt(stretch)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    matrix = np.array([[cos * scale_x, sin * scale_y, 0.0], [-sin * scale_x, cos * scale_y, 0.0]])
    if flip:
        matrix[:, 0] *= -1.0
    out_w = max(3, math.ceil(abs(matrix[0, 0]) * width + abs(matrix[0, 1]) * height))
    out_h = max(3, math.ceil(abs(matrix[1, 0]) * width + abs(matrix[1, 1]) * height))
    matrix[:, 2] = (out_w - 1) / 2, (out_h - 1) / 2
    matrix[:, 2] -= matrix[:, :2] @ np.array([(width - 1) / 2, (height - 1) / 2])
    return cv2.warpAffine(source, matrix, (out_w, out_h), flags=cv2.INTER_LINEAR)


def recolour(cutout: np.ndarray, gain: np.ndarray, lift: float) -> np.ndarray:
    """Scale the BGR channels by ``gain`` (3,) and add ``lift`` (in units of 0..255). The result is premultiplied.

    All steps use uint8 in OpenCV. Floats in numpy take four times as long.
    """
    matrix = np.diag([*gain, 1.0])
    matrix[:3, 3] = lift / 255.0  # premultiplied: the lift of a pixel is proportional to its alpha
    alpha = cutout[..., 3]
    return cv2.min(cv2.transform(cutout, matrix), cv2.merge([alpha, alpha, alpha, alpha]))
