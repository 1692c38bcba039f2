"""The gate: a teacher that was not really loaded is the field's classic silent failure, so it is measured first."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import torch
from mmengine.runner import Runner
from torch import nn

from pipeline.data.images import image_errors
from pipeline.data.validation import coco_metric
from pipeline.errors import DataError, TeacherError
from pipeline.mmdet_compat.registry import METRICS, Config, build


def measure(detector: nn.Module, cfg: Config, images: int) -> dict[str, float]:
    """COCO mAP and AP50 (fractions) of a detector on the first `images` images of the config's val set."""
    loader_cfg = copy.deepcopy(cfg.val_dataloader)
    loader_cfg.dataset.indices = images
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its table
        loader = Runner.build_dataloader(loader_cfg, seed=0)
        metric: Any = build(METRICS, coco_metric(cfg.val_evaluator), "val_evaluator")
        metric.dataset_meta = loader.dataset.metainfo
        with torch.no_grad(), image_errors():
            for batch in loader:
                metric.process(batch, [sample.to_dict() for sample in detector.test_step(batch)])  # type: ignore
        # Only what was shown to the teacher may count: by default CocoMetric scores the whole annotation file.
        dataset: Any = loader.dataset
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        if not any(info["instances"] for info in infos):
            raise DataError(
                f"val_dataloader.dataset: none of its first {len(infos)} images has a box, so no mAP can be measured; "
                "raise teacher.gate_images"
            )
        metric.img_ids = [info["img_id"] for info in infos]
        result = metric.evaluate(len(dataset))
    found = {key.rsplit("/", 1)[-1]: float(value) for key, value in result.items()}
    # Without a single detection the metric returns nothing at all.
    return {"mAP": found.get("bbox_mAP", 0.0), "AP50": found.get("bbox_mAP_50", 0.0), "images": len(dataset)}


def require(measured: dict[str, float], minimum: float) -> None:
    """Raise TeacherError below the configured minimum."""
    if not measured["mAP"] >= minimum:
        raise TeacherError(
            f"teacher: mAP {measured['mAP']:.3f} on {measured['images']} val images, teacher.min_map asks for "
            f"{minimum:.3f}; are these the right weights, classes and data? Nothing was cached"
        )
