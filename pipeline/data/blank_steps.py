"""What is left of mmdet's transforms without pixels: their random draws, sizes, and what they do to boxes.

Each function changes a copy of a transform, or returns a function that replaces it. The image is a blank: it has a
shape and takes no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Results = dict[str, Any]
Step = Callable[[Results], Results | None]


def blank(height: int, width: int, kind: Any) -> np.ndarray:
    """Return an image (height, width, 3) of zeros that takes no memory and is read-only. Raise ValueError if empty."""
    if height < 1 or width < 1:
        raise ValueError(f"an image of {width}x{height} pixels")
    return np.broadcast_to(np.zeros((), kind), (height, width, 3))


def put_blank(results: Results, height: int, width: int) -> None:
    """Replace the image by a blank of another size."""
    results["img"] = blank(height, width, results["img"].dtype)
    results["img_shape"] = (height, width)


def unchanged(transform: Any) -> Step:
    """A transform that reads no pixels: it slices, flips or leaves the image."""
    return transform


def pad(transform: Any) -> Step:
    def pad_image(results: Results) -> None:
        height, width = results["img"].shape[:2]
        wanted = (height, width)
        if transform.pad_to_square:
            wanted = (max(wanted), max(wanted))
        divisor = transform.size_divisor
        if divisor is not None:
            wanted = (math.ceil(wanted[0] / divisor) * divisor, math.ceil(wanted[1] / divisor) * divisor)
        elif transform.size is not None:
            wanted = transform.size[::-1]
        put_blank(results, max(height, wanted[0]), max(width, wanted[1]))
        results["pad_shape"] = results["img"].shape
        results["pad_fixed_size"], results["pad_size_divisor"] = transform.size, divisor

    transform._pad_img = pad_image
    return transform


def photometric(transform: Any) -> Step:
    def run(results: Results) -> Results:
        transform._random_flags()
        height, width = results["img"].shape[:2]
        results["img"] = blank(height, width, np.float32)
        return results

    return run


def hsv(transform: Any) -> Step:
    def run(results: Results) -> Results:
        transform._get_hsv_gains()
        return results

    return run


def expand(transform: Any) -> Step:
    def run(results: Results) -> Results:
        if transform._random_prob() > transform.prob:
            return results
        height, width = results["img"].shape[:2]
        ratio = transform._random_ratio()
        left, top = transform._random_left_top(ratio, height, width)
        put_blank(results, int(height * ratio), int(width * ratio))
        if results.get("gt_bboxes") is not None:
            results["gt_bboxes"].translate_([left, top])
        return results

    return run


def cut_out(transform: Any) -> Step:
    def run(results: Results) -> Results:
        height, width = results["img"].shape[:2]
        for _ in range(np.random.randint(transform.n_holes[0], transform.n_holes[1] + 1)):
            for limit in (width, height, len(transform.candidates)):
                np.random.randint(0, limit)
        return results

    return run


def erase(transform: Any) -> Step:
    transform._transform_img = lambda results, patches: None
    return transform


def shift(transform: Any) -> Step:
    """As RandomShift, which returns the image unshifted where no box is left."""

    def run(results: Results) -> Results:
        if transform._random_prob() < transform.prob:
            most = transform.max_shift_px
            right, down = np.random.randint(-most, most), np.random.randint(-most, most)
            boxes = results["gt_bboxes"].clone()
            boxes.translate_([right, down])
            boxes.clip_(results["img"].shape[:2])
            least = transform.filter_thr_px
            left = (boxes.widths > least).numpy() & (boxes.heights > least).numpy()
            if left.any():
                results["gt_bboxes"] = boxes[left]
                for key in ("gt_bboxes_labels", "gt_ignore_flags"):
                    if results.get(key) is not None:
                        results[key] = results[key][left]
        return results

    return run


def affine(transform: Any) -> Step:
    def run(results: Results) -> Results:
        height, width = results["img"].shape[:2]
        size = (height + transform.border[1] * 2, width + transform.border[0] * 2)
        matrix = transform._get_random_homography_matrix(*size)
        put_blank(results, *size)
        boxes = results["gt_bboxes"]
        if len(boxes):
            boxes.project_(matrix)
            if transform.bbox_clip_border:
                boxes.clip_(size)
            inside = boxes.is_inside(size).numpy()
            for key in ("gt_bboxes", "gt_bboxes_labels", "gt_ignore_flags"):
                results[key] = results[key][inside]
        return results

    return run


def center_crop(transform: Any) -> Step:
    def crop_image(image: np.ndarray, center: list[int], size: list[int]) -> tuple[np.ndarray, Any, np.ndarray]:
        (y, x), (height, width), limits = center, size, image.shape
        left, top = max(0, x - width // 2), max(0, y - height // 2)
        right, bottom = min(x + width // 2, limits[1]), min(y + height // 2, limits[0])
        down, across = height // 2 - y, width // 2 - x
        border = np.array([down + top, down + bottom, across + left, across + right], np.float32)
        return blank(height, width, image.dtype), border, np.array([left, top, right, bottom])

    transform._crop_image_and_paste = crop_image
    return transform
