"""SOLO, which predicts masks and no boxes, as teacher and as student with features only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mmdet
import pytest

from pipeline.cache.canonical import read_json
from pipeline.config import load_config
from pipeline.mmdet_compat.registry import Config
from pipeline.stage2.train import train_student
from tests.helpers.configs import make_config
from tests.helpers.datasets import CLASSES
from tests.helpers.detectors import detector, save_teacher
from tests.helpers.stages import stage1

FEATURES_ONLY = {
    "cache.codec": {"type": "lossless", "scores": False},
    "cache.passes": 1,
    "distill.score_weight": 0.0,
    "distill.feature_loss": "pkd",
    "val_evaluator.metric": "segm",
}


def thin_solo() -> dict[str, Any]:
    path = Path(mmdet.__file__).parent / ".mim" / "configs" / "solo" / "solo_r50_fpn_1x_coco.py"
    model, thin = Config.fromfile(path).model, detector("retinanet")
    model.update(backbone=thin["backbone"], data_preprocessor={**thin["data_preprocessor"], "pad_mask": True})
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    model.mask_head.update(num_classes=len(CLASSES), in_channels=16, feat_channels=16, stacked_convs=1)
    model.mask_head.norm_cfg = {"type": "GN", "num_groups": 4, "requires_grad": True}
    return model.to_dict()


def with_masks(data: Path, folder: Path) -> str:
    """Write the annotations with each box as its mask. Return the path."""
    content = json.loads((data / "annotations.json").read_text())
    for box in content["annotations"]:
        x, y, w, h = box["bbox"]
        box["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    (folder / "masks.json").write_text(json.dumps(content))
    return str(folder / "masks.json")


@pytest.mark.slow
def test_both_stages(data: Path, tmp_path: Path) -> None:
    """The gate and the summary have the mAP of masks."""
    file = with_masks(data, tmp_path)
    config = make_config(data, save_teacher(tmp_path / "teacher", thin_solo()), thin_solo(), tmp_path, "lossless")
    cfg, _ = load_config(str(config))
    pipeline = [dict(step) for step in cfg.train_dataloader.dataset.pipeline]
    next(step for step in pipeline if step["type"] == "LoadAnnotations")["with_mask"] = True
    changes = {
        **FEATURES_ONLY,
        "train_dataloader.dataset.pipeline": pipeline,
        **{f"{part}.ann_file": file for part in ("train_dataloader.dataset", "val_dataloader.dataset")},
        "val_evaluator.ann_file": file,
    }
    assert stage1(config, **changes)["views"] == 12
    assert read_json(tmp_path / "cache" / "gate.json")["images"] == 2
    summary = train_student(*load_config(str(config), changes))
    assert summary["iterations"] >= 3 and summary["mAP_of"] == "masks" and 0 <= summary["mAP"] <= 1
