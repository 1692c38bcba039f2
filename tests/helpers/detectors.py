"""Thin detectors of four families and checkpoints of teachers made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.datasets import CLASSES

FAMILIES = ("retinanet", "gfl", "fcos", "faster-rcnn")
PREPROCESS = {
    "type": "DetDataPreprocessor",
    "mean": [123.7, 116.3, 103.5],
    "std": [58.4, 57.1, 57.4],
    "bgr_to_rgb": True,
    "pad_size_divisor": 32,
}


def detector(family: str, depth: int = 18, width: int = 16) -> dict[str, Any]:
    """Take a detector of one of the paper's families from mmdet's own config and make it thin."""
    folder = family.replace("-", "_")
    names = {
        "retinanet": "retinanet_r50_fpn_1x_coco",
        "gfl": "gfl_r50_fpn_1x_coco",
        "faster-rcnn": "faster-rcnn_r50_fpn_1x_coco",
        "fcos": "fcos_r50-caffe_fpn_gn-head_1x_coco",
    }
    import mmdet

    from pipeline.mmdet_compat.registry import Config

    path = Path(mmdet.__file__).parent / ".mim" / "configs" / folder / f"{names[family]}.py"
    model = Config.fromfile(path).model
    base = 8
    expansion = 1 if depth < 50 else 4
    channels = [base * expansion * 2**n for n in range(4)]
    model.backbone.update(
        depth=depth,
        base_channels=base,
        frozen_stages=-1,
        init_cfg=None,
        style="pytorch",
        norm_cfg={"type": "BN"},
        norm_eval=False,
    )
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


def save_teacher(
    folder: Path, model: dict[str, Any], seed: int = 1, classes: tuple[str, ...] = CLASSES
) -> dict[str, str]:
    """Write config and checkpoint of a teacher with random weights. Returns the entries of `teacher=`."""
    import torch

    from pipeline.mmdet_compat.registry import MODELS, Config

    folder.mkdir(parents=True, exist_ok=True)
    config = Config({"model": model})
    config.dump(folder / "teacher.py")
    torch.manual_seed(seed)
    built = MODELS.build(config.model)
    built.init_weights()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.dim() == 4 and ("cls" in name or "retina" in name):
                parameter.mul_(20)  # scores that differ from place to place: else the FRS map is flat
    meta = {"dataset_meta": {"classes": classes}}
    torch.save({"state_dict": built.state_dict(), "meta": meta}, folder / "teacher.pth")
    return {"config": str(folder / "teacher.py"), "checkpoint": str(folder / "teacher.pth")}
