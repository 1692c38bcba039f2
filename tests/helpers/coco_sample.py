"""A folder with part of COCO 2017 outside the repository, and the configs of configs/coco made thin for it.

FRS_COCO_SAMPLE names the folder: annotations/instances_{train,val}2017.json, train2017/ and val2017/.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import cv2

from tests.helpers.paths import ROOT

SAMPLE = Path(os.environ.get("FRS_COCO_SAMPLE", ROOT.parent / "shared" / "coco_sample"))
TEACHER = SAMPLE.parent / "coco_teacher"  # YOLOX-Nano, trained on COCO: teacher.py and its weights
BASE, WIDTH = 16, 64  # channels of the backbone's first stage and of the FPN


@cache
def annotations(part: str) -> dict[str, Any]:
    """Read the annotation file of 'train' or 'val'."""
    return json.loads((SAMPLE / "annotations" / f"instances_{part}2017.json").read_text())


def crowds(part: str) -> dict[int, int]:
    """Return the number of crowd boxes of the images that have any, by image id."""
    found: dict[int, int] = {}
    for row in annotations(part)["annotations"]:
        if row["iscrowd"]:
            found[row["image_id"]] = found.get(row["image_id"], 0) + 1
    return found


@cache
def grey(part: str) -> list[int]:
    """Return the ids of the images with one channel."""
    rows, folder = annotations(part)["images"], SAMPLE / f"{part}2017"
    return [r["id"] for r in rows if cv2.imread(str(folder / r["file_name"]), cv2.IMREAD_UNCHANGED).ndim == 2]


def chosen(part: str) -> dict[str, int]:
    """Choose an image with most crowd boxes, a grey one, and the portrait with the largest id."""
    rows = annotations(part)["images"]
    boxed = {row["image_id"] for row in annotations(part)["annotations"]}
    rows = [row for row in rows if row["id"] in boxed]
    return {
        "crowd": max(crowds(part), key=lambda key: crowds(part)[key]),
        "grey": grey(part)[0],
        "portrait": max(row["id"] for row in rows if row["height"] > 1.3 * row["width"]),
    }


def thin_model(model: Any, prefix: str, depth: int, width: int = WIDTH) -> dict[str, Any]:
    """Return options that make a detector thin and start it from random weights. All else stays as in its config."""
    expansion = 1 if depth < 50 else 4
    found: dict[str, Any] = {
        "backbone.depth": depth,
        "backbone.base_channels": BASE,
        "backbone.init_cfg": None,
        "neck.in_channels": [BASE * expansion * 2**n for n in range(4)],
        "neck.out_channels": width,
    }
    if "rpn_head" in model:
        found |= {"rpn_head.in_channels": width, "rpn_head.feat_channels": width}
        found |= {"roi_head.bbox_roi_extractor.out_channels": width, "roi_head.bbox_head.in_channels": width}
        found |= {"roi_head.bbox_head.fc_out_channels": 32}
    else:
        found |= {"bbox_head.in_channels": width, "bbox_head.feat_channels": width}
    return {f"{prefix}{key}": value for key, value in found.items()}


def thin_config(name: str, work: Path) -> Path:
    """Write a config of configs/coco for the chosen images, with a thin teacher and student and a lossless cache.

    The teacher is the one that the config names, made thin, with random weights. A student with a wider FPN than its
    teacher keeps the ratio.
    """
    from pipeline.config import load_config
    from pipeline.mmdet_compat.registry import DATASETS, Config
    from pipeline.teacher.zoo import find_teacher
    from tests.helpers.detectors import save_teacher

    path, moved = str(ROOT / "configs" / "coco" / f"{name}.py"), {"data_root": f"{SAMPLE}/"}
    cfg, sections = load_config(path, moved)
    teacher = Config({"model": find_teacher(sections.teacher).cfg.model})
    teacher.merge_from_dict(thin_model(teacher.model, "model.", 50))
    classes = DATASETS.get("CocoDataset").METAINFO["classes"]
    saved = save_teacher(work / "teacher", teacher.model.to_dict(), classes=classes)
    options = {
        **thin_model(cfg.model, "model.", 18, cfg.model.neck.out_channels * WIDTH // 256),
        **{f"teacher.{key}": value for key, value in saved.items()},
        **{"teacher.name": None, "teacher.min_map": 0.0, "teacher.gate_images": 1},
        **{"cache.dir": str(work / "cache"), "cache.codec": {"type": "lossless"}, "cache.passes": 1},
        **{"cache.batch_size": 2, "cache.workers": 0, "distill.warmup_iters": 0, "train_cfg.max_epochs": 1},
        **{"log_level": "ERROR", "work_dir": str(work / name)},
        **few_images(cfg),
    }
    cfg, _ = load_config(path, moved | options)
    cfg.dump(work / f"{name}.py")
    return work / f"{name}.py"


def few_images(cfg: Any, val: int = 1, more: int = 0) -> dict[str, Any]:
    """Return options that train on the chosen images and `more`, evaluate `val` images, and load in this process."""
    from pipeline.mmdet_compat.registry import DATASETS

    dataset = DATASETS.build({**cfg.train_dataloader.dataset, "pipeline": []})
    ids = [dataset.get_data_info(index)["img_id"] for index in range(len(dataset))]
    loaders = {f"{part}_dataloader.num_workers": 0 for part in ("train", "val")}
    loaders |= {f"{part}_dataloader.persistent_workers": False for part in ("train", "val")}
    wanted = list(chosen("train").values())
    wanted += [one for one in ids if one not in wanted][:more]
    return {
        **loaders,
        "train_dataloader.dataset.indices": [ids.index(one) for one in wanted],
        "val_dataloader.dataset.indices": val,
    }
