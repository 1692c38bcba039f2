"""Small real things for the tests: JPEG files, a COCO annotation file, thin detectors of four families, a config."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipeline.mmdet_compat.registry import MODELS, Config
from pipeline.progress import Silent

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

CLASSES = ("person", "car", "dog")
SIZES = [(96, 64), (64, 96), (120, 80), (96, 72), (64, 100), (128, 64)]  # (width, height)
FAMILIES = ("retinanet", "gfl", "fcos", "faster-rcnn")
PREPROCESS = {"type": "DetDataPreprocessor", "mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4],
              "bgr_to_rgb": True, "pad_size_divisor": 32}  # fmt: skip


def make_dataset(root: Path, images: int = 12, seed: int = 0) -> Path:
    """`images` JPEGs of coloured rectangles on noise, landscape and portrait, and their COCO annotations."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": n + 1, "name": name} for n, name in enumerate(CLASSES)]
    for n in range(images):
        width, height = SIZES[n % len(SIZES)]
        picture = rng.integers(0, 90, (height, width, 3), np.uint8)
        name = f"{n:03d}.jpg"
        content["images"].append({"id": 100 + n, "file_name": name, "width": width, "height": height})
        for k in range(2):
            w, h = (int(x) for x in rng.integers(16, 40, 2))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            label = (n + k) % len(CLASSES)
            picture[y : y + h, x : x + w, label] = 255
            box = {"id": len(content["annotations"]) + 1, "image_id": 100 + n, "category_id": label + 1}
            content["annotations"].append({**box, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
        assert cv2.imwrite(str(root / "images" / name), picture)
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def detector(family: str, depth: int = 18, width: int = 16) -> dict[str, Any]:
    """A thin detector of one of the paper's families, from mmdet's own config."""
    folder = family.replace("-", "_")
    names = {
        "retinanet": "retinanet_r50_fpn_1x_coco",
        "gfl": "gfl_r50_fpn_1x_coco",
        "faster-rcnn": "faster-rcnn_r50_fpn_1x_coco",
        "fcos": "fcos_r50-caffe_fpn_gn-head_1x_coco",
    }
    import mmdet

    path = Path(mmdet.__file__).parent / ".mim" / "configs" / folder / f"{names[family]}.py"
    model = Config.fromfile(path).model
    base = 8
    expansion = 1 if depth < 50 else 4
    channels = [base * expansion * 2**n for n in range(4)]
    model.backbone.update(depth=depth, base_channels=base, frozen_stages=-1, init_cfg=None, style="pytorch",
                          norm_cfg={"type": "BN"}, norm_eval=False)  # fmt: skip
    model.neck.update(in_channels=channels, out_channels=width)
    model.data_preprocessor = dict(PREPROCESS)
    if family == "faster-rcnn":
        model.rpn_head.update(in_channels=width, feat_channels=width)
        model.roi_head.bbox_roi_extractor.out_channels = width
        model.roi_head.bbox_head.update(in_channels=width, fc_out_channels=32, num_classes=len(CLASSES))
    else:
        model.bbox_head.update(num_classes=len(CLASSES), in_channels=width, feat_channels=width, stacked_convs=1)
    if family in ("fcos", "gfl"):
        model.bbox_head.norm_cfg = {"type": "GN", "num_groups": 4, "requires_grad": True}
    return model.to_dict()


def save_teacher(folder: Path, model: dict[str, Any], seed: int = 1) -> dict[str, str]:
    """Config and checkpoint of a teacher with lively random weights. Returns the `teacher=` entries."""
    folder.mkdir(parents=True, exist_ok=True)
    config = Config({"model": model})
    config.dump(folder / "teacher.py")
    torch.manual_seed(seed)
    built = MODELS.build(config.model)
    built.init_weights()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.dim() == 4 and ("cls" in name or "retina" in name):
                parameter.mul_(20)  # scores that differ from place to place, so that the FRS map has something to say
    meta = {"dataset_meta": {"classes": CLASSES}}
    torch.save({"state_dict": built.state_dict(), "meta": meta}, folder / "teacher.pth")
    return {"config": str(folder / "teacher.py"), "checkpoint": str(folder / "teacher.pth")}


def make_config(
    data: Path, teacher: dict[str, Any], model: dict[str, Any], work: Path, codec: str = "frs", **changes: Any
) -> Path:
    """Write a complete config for both stages; `changes` are merged last (dotted keys)."""
    dataset = {
        "type": "CocoDataset", "data_root": str(data), "ann_file": "annotations.json",
        "data_prefix": {"img": "images/"}, "metainfo": {"classes": CLASSES},
    }  # fmt: skip
    load, resize = {"type": "LoadImageFromFile"}, {"type": "Resize", "scale": (128, 64), "keep_ratio": True}
    annotations = {"type": "LoadAnnotations", "with_bbox": True}
    train = [load, annotations, resize, {"type": "RandomFlip", "prob": 0.5}, {"type": "PackDetInputs"}]
    meta = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    test = [load, resize, annotations, {"type": "PackDetInputs", "meta_keys": meta}]
    val = {"batch_size": 1, "num_workers": 0, "sampler": {"type": "DefaultSampler", "shuffle": False},
           "dataset": {**dataset, "test_mode": True, "pipeline": test}}  # fmt: skip
    evaluator = {"type": "CocoMetric", "ann_file": str(data / "annotations.json"), "metric": "bbox"}
    config = Config({
        "default_scope": "mmdet", "model": model,
        "train_dataloader": {"batch_size": 4, "num_workers": 0, "dataset": {**dataset, "pipeline": train}},
        "val_dataloader": val, "test_dataloader": val, "val_evaluator": evaluator, "test_evaluator": evaluator,
        "val_cfg": {"type": "ValLoop"}, "train_cfg": {"max_epochs": 1, "val_interval": 1, "by_epoch": True},
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.001}},
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 1}},
        "randomness": {"seed": 520}, "log_level": "ERROR", "work_dir": str(work / "run"),
        "teacher": {**teacher, "min_map": 0.0, "gate_images": 2},
        "views": {"seed": 520},
        "cache": {"dir": str(work / "cache"), "codec": {"type": codec}, "batch_size": 2, "shard_samples": 4,
                  "calibration_views": 6, "workers": 0},
        "distill": {"feature_weight": 0.01, "score_weight": 0.05, "warmup_iters": 0},
    })  # fmt: skip
    config.merge_from_dict(changes)
    work.mkdir(parents=True, exist_ok=True)
    path = work / "config.py"
    config.dump(path)
    return path


def stage1(config: Path, **options: Any) -> dict[str, Any]:
    from pipeline.config import load_config
    from pipeline.stage1.run import cache_teacher

    cfg, sections = load_config(str(config), options)
    return cache_teacher(cfg, sections, lambda text: None, Silent())


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A thin RetinaNet teacher: 16 FPN channels, 9 x 3 score channels."""
    return save_teacher(tmp_path_factory.mktemp("teacher"), detector("retinanet", depth=18))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, data: Path, teacher: dict[str, str]) -> dict[str, Path]:
    """A finished cache of each codec, shared by tests that only read: {'frs': config, 'lossless': config}."""
    found = {}
    for codec in ("frs", "lossless"):
        work = tmp_path_factory.mktemp(codec)
        found[codec] = make_config(data, teacher, detector("retinanet"), work, codec)
        stage1(found[codec])
    return found
