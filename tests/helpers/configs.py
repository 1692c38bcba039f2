"""Complete configs of both stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.datasets import CLASSES


def make_config(
    data: Path, teacher: dict[str, Any], model: dict[str, Any], work: Path, codec: str | None = "frs", **changes: Any
) -> Path:
    """Write a complete config for both stages; `changes` are merged last (dotted keys). codec: None names no type."""
    from pipeline.mmdet_compat.registry import Config

    dataset = {
        "type": "CocoDataset",
        "data_root": str(data),
        "ann_file": "annotations.json",
        "data_prefix": {"img": "images/"},
        "metainfo": {"classes": CLASSES},
    }
    load, resize = {"type": "LoadImageFromFile"}, {"type": "Resize", "scale": (128, 64), "keep_ratio": True}
    annotations = {"type": "LoadAnnotations", "with_bbox": True}
    train = [load, annotations, resize, {"type": "RandomFlip", "prob": 0.5}, {"type": "PackDetInputs"}]
    meta = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    test = [load, resize, annotations, {"type": "PackDetInputs", "meta_keys": meta}]
    val = {
        "batch_size": 1,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": {**dataset, "test_mode": True, "pipeline": test},
    }
    evaluator = {"type": "CocoMetric", "ann_file": str(data / "annotations.json"), "metric": "bbox"}
    config = Config(
        {
            "default_scope": "mmdet",
            "model": model,
            "train_dataloader": {"batch_size": 4, "num_workers": 0, "dataset": {**dataset, "pipeline": train}},
            "val_dataloader": val,
            "test_dataloader": val,
            "val_evaluator": evaluator,
            "test_evaluator": evaluator,
            "val_cfg": {"type": "ValLoop"},
            "train_cfg": {"max_epochs": 1, "val_interval": 1, "by_epoch": True},
            "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.001}},
            "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 1}},
            "randomness": {"seed": 520},
            "log_level": "ERROR",
            "work_dir": str(work / "run"),
            "teacher": {**teacher, "min_map": 0.0, "gate_images": 2},
            "views": {"seed": 520},
            "cache": {
                "dir": str(work / "cache"),
                "codec": {"type": codec} if codec else {},
                "batch_size": 2,
                "shard_samples": 4,
                "calibration_views": 6,
                "workers": 0,
            },
            "distill": {"feature_weight": 0.01, "score_weight": 0.05, "warmup_iters": 0},
        }
    )
    config.merge_from_dict(changes)
    work.mkdir(parents=True, exist_ok=True)
    path = work / "config.py"
    config.dump(path)
    return path
