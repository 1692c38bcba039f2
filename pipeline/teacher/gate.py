"""The gate: a teacher that was not really loaded is the field's classic silent failure, so it is measured first."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import torch
from mmengine.runner import Runner
from torch import nn

from pipeline.data.validation import coco_metric, measure_errors, prepare_metric
from pipeline.errors import DataError, TeacherError
from pipeline.mmdet_compat.registry import METRICS, Config, build, config_errors


def measure(detector: nn.Module, cfg: Config, images: int) -> dict[str, float]:
    """COCO mAP and AP50 (fractions) of a detector on the first `images` images of the config's val set.

    They are those of boxes; of masks, if the detector predicts masks only.
    """
    kind = "segm" if predicts_masks_only(detector) else "bbox"
    loader_cfg = copy.deepcopy(cfg.val_dataloader)
    loader_cfg.dataset.indices = images
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its table
        with config_errors("val_dataloader"):
            loader = Runner.build_dataloader(loader_cfg, seed=0)
        metric: Any = build(METRICS, {**coco_metric(cfg.val_evaluator), "metric": kind}, "val_evaluator")
        metric.dataset_meta = loader.dataset.metainfo
        with torch.no_grad(), measure_errors():
            for batch in loader:
                metric.process(batch, [sample.to_dict() for sample in detector.test_step(batch)])  # type: ignore
        dataset: Any = loader.dataset
        infos = prepare_metric(metric, dataset)
        if not any(not box["ignore_flag"] for info in infos for box in info["instances"]):
            raise DataError(
                f"val_dataloader.dataset: none of its first {len(infos)} images has a box, so no mAP can be measured; "
                "raise teacher.gate_images"
            )
        result = metric.evaluate(len(dataset))
    found = {key.rsplit("/", 1)[-1]: float(value) for key, value in result.items()}
    # Without a single detection the metric returns nothing at all.
    return {"mAP": found.get(f"{kind}_mAP", 0.0), "AP50": found.get(f"{kind}_mAP_50", 0.0), "images": len(dataset)}


def predicts_masks_only(detector: nn.Module) -> bool:
    """Return whether a detector predicts masks and no boxes, as SOLO and Mask2Former do."""

    def has(*names: str) -> bool:
        return any(getattr(detector, name, None) is not None for name in names)

    return has("mask_head", "panoptic_head") and not has("bbox_head", "roi_head", "rpn_head")


def require(measured: dict[str, float], minimum: float) -> None:
    """Raise TeacherError below the configured minimum."""
    if not measured["mAP"] >= minimum:
        raise TeacherError(
            f"teacher: mAP {measured['mAP']:.3f} on {measured['images']} val images, teacher.min_map asks for "
            f"{minimum:.3f}; are these the right weights, classes and data? Nothing was cached"
        )
