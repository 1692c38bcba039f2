"""The size of a view without its pixels: the random draws and the arithmetic of mmdet's transforms on a blank image.

A transform that has no rule here, or is not mmdet's, runs on black pixels instead (`Views.pad_shape`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from mmcv.image import rescale_size

from pipeline.data import blank_steps
from pipeline.data.blank_steps import Results, Step, put_blank, unchanged
from pipeline.data.transforms import SAME_SIZE, all_names
from pipeline.mmdet_compat.registry import type_name

CV2 = {"nearest", "bilinear", "bicubic", "area", "lanczos"}  # interpolations of OpenCV


def chain_without_pixels(transforms: list[Any], configs: list[dict[str, Any]], by_boxes: bool) -> list[Step] | None:
    """Return what is left of a chain of transforms without pixels; None if a transform has no rule.

    `by_boxes`: the boxes decide the result. Otherwise boxes are not loaded if no step needs them, and the last steps
    are left out if they keep the size.
    """
    loading = [config for config in configs if type_name(config["type"]) == "LoadAnnotations"]
    if any(config.get("box_type", "hbox") != "hbox" for config in loading):
        return None
    if by_boxes and any(config.get("with_mask") or config.get("with_seg") for config in loading):
        return None
    steps = [(without_pixels(transform), config) for transform, config in zip(transforms, configs)]
    if any(step is None for step, _ in steps):
        return None
    if not by_boxes:
        while steps and set(all_names(steps[-1][1])) <= SAME_SIZE:
            steps.pop()
        if not {"RandomShift", "RandomAffine"} & set(all_names([config for _, config in steps])):
            steps = [(step, config) for step, config in steps if config not in loading]
    return [step for step, _ in steps if step is not None]


def run_chain(steps: list[Step], results: Results) -> Results | None:
    """Run steps one after another. Return None if one of them leaves the view out, because no box is in it."""
    for step in steps:
        found = step(results)
        if found is None:
            return None
        results = found
    return results


def without_pixels(transform: Any) -> Step | None:
    """Return a transform that gives views of the same size from the same random draws; None if it has no rule."""
    kind = type(transform)
    rule = RULES.get(kind.__name__) if kind.__module__.partition(".")[0] in ("mmdet", "mmcv") else None
    return None if rule is None else rule(copy.copy(transform))


def resize(transform: Any) -> Step | None:
    if transform.backend != "cv2" or transform.interpolation not in CV2:
        return None

    def resize_image(results: Results) -> None:
        height, width = results["img"].shape[:2]
        size = rescale_size((width, height), results["scale"]) if transform.keep_ratio else results["scale"]
        put_blank(results, size[1], size[0])
        results["scale_factor"] = (size[0] / width, size[1] / height)
        results["keep_ratio"] = transform.keep_ratio

    transform._resize_img = resize_image
    return transform


def resize_to_shape(transform: Any) -> Step | None:
    padding = (
        without_pixels(getattr(transform, "pad_transform", None)) if transform.keep_ratio else unchanged(transform)
    )
    if padding is None or transform.backend != "cv2" or transform.interpolation not in CV2:
        return None

    def run(results: Results) -> Results | None:
        height, width = results["img"].shape[:2]
        size = (transform.width, transform.height)
        results["scale_factor"] = (size[0] / width, size[1] / height)
        if transform.keep_ratio:
            factor = min(results["scale_factor"])
            size = (int(width * factor + 0.5), int(height * factor + 0.5))
            results["scale_factor"] = (factor, factor)
            put_blank(results, *rescale_size((width, height), size)[::-1])
        else:
            put_blank(results, size[1], size[0])
        results["scale"], results["keep_ratio"] = size, transform.keep_ratio
        transform._resize_bboxes(results)
        transform._record_homography_matrix(results)
        return padding(results) if transform.keep_ratio else results

    return run


def resize_inside(transform: Any) -> Step | None:
    transform.resize = without_pixels(transform.resize)
    return None if transform.resize is None else transform


def choose(transform: Any) -> Step | None:
    """RandomChoice and RandomApply: they hold other transforms."""
    inner = transform.transforms
    chains = [inner] if hasattr(inner, "transforms") else inner
    found = [[without_pixels(step) for step in chain.transforms] for chain in chains]
    if any(step is None for steps in found for step in steps):
        return None
    made = [partial(run_chain, [step for step in steps if step is not None]) for steps in found]
    transform.transforms = made[0] if hasattr(inner, "transforms") else made
    return transform


RULES: dict[str, Callable[[Any], Step | None]] = {
    **dict.fromkeys(
        ("LoadAnnotations", "FilterAnnotations", "RandomFlip", "RandomCrop", "MinIoURandomCrop"), unchanged
    ),
    **dict.fromkeys(("RandomResize", "RandomChoiceResize"), resize_inside),
    **dict.fromkeys(("RandomChoice", "RandomApply"), choose),
    "Resize": resize,
    "FixShapeResize": resize_to_shape,
    "Pad": blank_steps.pad,
    "PhotoMetricDistortion": blank_steps.photometric,
    "YOLOXHSVRandomAug": blank_steps.hsv,
    "Expand": blank_steps.expand,
    "CutOut": blank_steps.cut_out,
    "RandomErasing": blank_steps.erase,
    "RandomShift": blank_steps.shift,
    "RandomAffine": blank_steps.affine,
    "RandomCenterCropPad": blank_steps.center_crop,
}
