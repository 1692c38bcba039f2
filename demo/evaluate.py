"""Measure a detector's mAP on the demo's val split, with the config's test pipeline and mmdet's CocoMetric."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner


def evaluate(model: BaseModel, cfg: Config, data_root: Path) -> dict[str, float]:
    """Compute the COCO box metrics of ``model`` on ``data_root``'s val split.

    Args:
        model: an mmdet detector. Its training mode is restored.
        cfg: its config. Only ``val_dataloader`` is used.
        data_root: a folder made by make_data.py.

    Returns:
        'bbox_mAP', 'bbox_mAP_50' and so on, between 0 and 1.
    """
    from mmdet.evaluation import CocoMetric  # imported here, after mmcv's operators are installed

    loader_cfg = cfg.val_dataloader.to_dict()
    loader_cfg["dataset"]["data_root"] = str(data_root)
    loader_cfg["num_workers"], loader_cfg["persistent_workers"] = 0, False
    was_training = model.training
    model.eval()
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints tables
        loader = Runner.build_dataloader(loader_cfg)
        metric = CocoMetric(ann_file=str(data_root / "annotations/instances_val.json"), metric="bbox")
        metric.dataset_meta = loader.dataset.metainfo
        for batch in loader:
            with torch.no_grad():
                results = model.test_step(batch)
            metric.process(batch, [sample.to_dict() for sample in results])
        metrics = metric.evaluate(len(loader.dataset))
    model.train(was_training)
    return {name.removeprefix("coco/"): float(value) for name, value in metrics.items()}
