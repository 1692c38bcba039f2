"""Planned sizes follow from arithmetic, and are those of mmdet's transforms on pixels."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.blank_steps import blank
from pipeline.data.transforms import DRAWN, FIXED, WRAPPERS
from pipeline.data.view_sizes import RULES, without_pixels
from pipeline.data.views import Views, build_transform, padded, seeded
from pipeline.mmdet_compat.registry import TRANSFORMS

LOAD, PACK = {"type": "LoadImageFromFile"}, {"type": "PackDetInputs"}
BOXES = {"type": "LoadAnnotations", "with_bbox": True}
FLIP, CROP = {"type": "RandomFlip", "prob": 0.5}, {"type": "RandomCrop", "crop_size": (48, 40)}
RANGE = {"type": "RandomResize", "scale": [(128, 48), (128, 96)], "keep_ratio": True}
CHOICE = {"type": "RandomChoiceResize", "scales": [(128, 64), (160, 96), (50, 50)], "keep_ratio": True}
CENTER = {"type": "RandomCenterCropPad", "mean": [0, 0, 0], "std": [1, 1, 1], "to_rgb": True}
STEPS: list[dict[str, Any]] = [
    BOXES,
    {"type": "Resize", "scale": (128, 64), "keep_ratio": True},
    {"type": "Resize", "scale": (77, 31), "keep_ratio": False, "clip_object_border": False},
    {"type": "Resize", "scale_factor": 1.37, "keep_ratio": True},
    {"type": "Resize", "scale_factor": (0.5, 1.5)},
    {"type": "FixShapeResize", "width": 90, "height": 50, "keep_ratio": True},
    {"type": "FixShapeResize", "width": 90, "height": 50, "keep_ratio": False, "interpolation": "nearest"},
    {"type": "Pad", "size": (100, 60)},
    {"type": "Pad", "size_divisor": 32},
    {"type": "Pad", "pad_to_square": True, "pad_val": {"img": (114.0, 114.0, 114.0)}},
    {"type": "Pad", "pad_to_square": True, "size_divisor": 48},
    {"type": "FilterAnnotations", "min_gt_bbox_wh": (1, 25)},
    {"type": "FilterAnnotations", "min_gt_bbox_wh": (20, 20), "keep_empty": False},
    RANGE,
    {"type": "RandomResize", "scale": (128, 64), "ratio_range": (0.1, 2.0), "keep_ratio": True},
    {"type": "RandomResize", "scale": [(60, 40), (90, 70)], "keep_ratio": False},
    CHOICE,
    FLIP,
    {"type": "RandomFlip", "prob": [0.2, 0.3, 0.3], "direction": ["horizontal", "vertical", "diagonal"]},
    {"type": "PhotoMetricDistortion"},
    {"type": "YOLOXHSVRandomAug"},
    {"type": "Expand", "mean": [1, 2, 3], "ratio_range": (1, 3), "prob": 0.7},
    {"type": "CutOut", "n_holes": (1, 4), "cutout_shape": [(4, 4), (8, 2)]},
    {"type": "CutOut", "n_holes": 2, "cutout_ratio": (0.2, 0.3)},
    {"type": "RandomErasing", "n_patches": (1, 4), "ratio": (0.1, 0.6), "bbox_erased_thr": 0.3},
    {"type": "RandomErasing", "n_patches": 2, "ratio": 0.4, "squared": False},
    {"type": "RandomShift", "prob": 0.8, "max_shift_px": 40, "filter_thr_px": 10},
    {"type": "RandomAffine", "scaling_ratio_range": (0.3, 2.0), "border": (-8, 12)},
    {"type": "RandomAffine", "max_translate_ratio": 0.6, "bbox_clip_border": False},
    CROP,
    *({**CROP, "crop_type": kind, "crop_size": (0.3, 0.7)} for kind in ("relative", "relative_range")),
    {**CROP, "crop_type": "absolute_range", "crop_size": (20, 70), "allow_negative_crop": True},
    {"type": "MinIoURandomCrop", "min_crop_size": 0.3},
    {**CENTER, "crop_size": (64, 60), "ratios": (0.6, 1.0), "border": 16, "test_pad_mode": None},
    {**CENTER, "crop_size": None, "ratios": None, "border": None, "test_mode": True},
    {"type": "RandomChoice", "transforms": [[CHOICE], [FLIP, CROP], [RANGE, {"type": "Pad", "size_divisor": 32}]]},
    {"type": "RandomApply", "transforms": [RANGE, CROP], "prob": 0.5},
]
SIZES = [(64, 96), (96, 64), (50, 50), (37, 121)]  # (height, width)


def as_mmdet(boxes: torch.Tensor) -> Any:
    """Boxes of mmdet's class, which is imported after the replacement of mmcv's ops."""
    from mmdet.structures.bbox import HorizontalBoxes

    return HorizontalBoxes(boxes)


def results(height: int, width: int, image: np.ndarray, boxes: int) -> dict[str, Any]:
    """What mmdet's transforms get after LoadAnnotations."""
    rng = np.random.default_rng(height)
    corner, sides = rng.uniform(0, 30, (boxes, 2)), rng.uniform(2, 34, (boxes, 2))
    found = torch.from_numpy(np.concatenate([corner, corner + sides], 1).astype(np.float32).reshape(-1, 4))
    values = {"gt_bboxes_labels": np.arange(boxes), "gt_ignore_flags": np.zeros(boxes, bool)}
    instances = [{"bbox": box.tolist(), "bbox_label": 0, "ignore_flag": 0} for box in found]
    shape = (height, width)
    return {"img": image, "img_shape": shape, "instances": instances, "gt_bboxes": as_mmdet(found), **values}


def outcome(step: Any, given: dict[str, Any], seed: int) -> list[Any]:
    """All that later steps may depend on: the image's shape and type, the boxes, other keys, and the generators."""
    given = copy.deepcopy(given)
    with seeded(seed):
        made = step(given)
        after = [np.random.random(), random.random()]
    if made is None:
        return [None, *after]
    image, boxes = made.pop("img"), made.pop("gt_bboxes").tensor.tolist()
    rest = {key: np.asarray(value).tolist() for key, value in sorted(made.items()) if key != "instances"}
    return [image.shape, str(image.dtype), boxes, repr(rest), *after]


@pytest.mark.parametrize("config", STEPS, ids=lambda config: str(config["type"]))
def test_a_step_without_pixels_is_the_step(config: dict[str, Any]) -> None:
    real = build_transform(config)
    step = without_pixels(real)
    assert step is not None
    seen = set()
    for height, width in SIZES:
        for seed in range(12):
            kind = np.float32 if config["type"] == "RandomCenterCropPad" else np.uint8
            black = np.zeros((height, width, 3), kind)
            for boxes in (4, 1, 0):
                wanted = outcome(real, results(height, width, black, boxes), seed)
                assert outcome(step, results(height, width, blank(height, width, kind), boxes), seed) == wanted
                seen.add(str(wanted))
    assert len(seen) > 1


def test_every_transform_has_a_rule_and_is_tested() -> None:
    assert set(RULES) == FIXED | DRAWN | WRAPPERS == {config["type"] for config in STEPS}


PIPELINES: dict[str, list[dict[str, Any]]] = {
    "range": [BOXES, RANGE, FLIP],
    "flip and colours first": [BOXES, {"type": "YOLOXHSVRandomAug"}, FLIP, {"type": "PhotoMetricDistortion"}, RANGE],
    "holes first": [BOXES, *(step for step in STEPS if step["type"] in ("CutOut", "RandomErasing")), RANGE],
    "shift first": [BOXES, {"type": "RandomShift"}, RANGE, FLIP],
    "affine": [BOXES, {"type": "RandomAffine", "border": (-8, 12)}, FLIP, CHOICE],
    "ssd": [BOXES, {"type": "Expand"}, {"type": "MinIoURandomCrop"}, RANGE, FLIP, {"type": "PhotoMetricDistortion"}],
    "jitter": [BOXES, RANGE, CROP, {"type": "FilterAnnotations", "min_gt_bbox_wh": (9, 9)}, FLIP],
    "detr": [BOXES, FLIP, {"type": "RandomChoice", "transforms": [[CHOICE], [RANGE, CROP, CHOICE]]}],
    "apply": [BOXES, {"type": "RandomApply", "transforms": [{"type": "Expand"}]}, {"type": "Pad", "size_divisor": 32}],
    "without boxes": [{"type": "RandomApply", "transforms": [FLIP]}, RANGE],
}


def info(image: int, height: int, width: int) -> dict[str, Any]:
    given = results(height, width, np.zeros(0), 3)
    return {"img_id": image, "height": height, "width": width, "instances": given["instances"]}


@pytest.mark.parametrize("name", PIPELINES)
def test_planned_sizes(name: str) -> None:
    """As the whole pipeline on pixels gives them, whichever steps arithmetic leaves out."""
    views = Views([LOAD, *PIPELINES[name], PACK], 3, 5)
    assert None not in views._sized
    found = []
    for image, (height, width) in enumerate(SIZES * 4):
        for view in range(5):
            about = info(image, height, width)
            pixels = np.zeros((height, width, 3), np.uint8)
            made = views._transform({**copy.deepcopy(about), "img": pixels, "img_shape": (height, width)}, view)
            found.append(None if made is None else padded(made["img"].shape))
            assert views.pad_shape(about, view) == found[-1]
    assert len(set(found)) > 1


def test_no_memory_is_taken() -> None:
    """An image of 10^10 pixels would take 30 GB."""
    for name in ("range", "jitter", "ssd", "affine"):
        views = Views([LOAD, *PIPELINES[name], PACK], 3, 2)
        assert {views.pad_shape(info(n, 10**5, 10**5), 1) for n in range(20)} != {(32, 32)}


def test_a_transform_of_the_user_runs_on_pixels() -> None:
    """It has a known name, so it is accepted; what it does to a size is not known."""

    class RandomFlip(TRANSFORMS.get("RandomFlip")):  # type: ignore[misc]
        def transform(self, results: dict) -> dict:
            results["img"] = np.rot90(results["img"])
            return results

    turn = {**FLIP, "type": RandomFlip}
    for steps in ([RANGE, turn], [{"type": "RandomApply", "prob": 1.0, "transforms": [turn]}, RANGE]):
        views = Views([LOAD, BOXES, *steps, PACK], 0, 4)
        assert views._sized == [None]
        sizes = [views.pad_shape(info(n, 64, 192), 1) for n in range(9)]
        assert all(size is not None and size[0] > size[1] for size in sizes)


@pytest.mark.parametrize(
    "change",
    [{"with_mask": True}, {"with_seg": True}, {"box_type": None}],
    ids=["masks", "segments", "arrays as boxes"],
)
def test_what_the_rules_do_not_cover_runs_on_pixels(change: dict[str, Any]) -> None:
    views = Views([LOAD, {**BOXES, **change}, CROP, PACK], 0, 2)
    assert views._sized == [None]
    other = Views([LOAD, BOXES, {**RANGE, "backend": "pillow"}, PACK], 0, 2)
    assert other._sized == [None] and other.pad_shape(info(1, 64, 96), 0) == (96, 128)


def test_a_size_that_cannot_be_made() -> None:
    """`replay` fails on this image too, and names it."""
    views = Views([LOAD, BOXES, {"type": "RandomResize", "scale": (64, 64), "ratio_range": (0.1, 0.2)}, PACK], 0, 2)
    assert views.pad_shape(info(0, 1, 5000), 0) == (32, 32)
