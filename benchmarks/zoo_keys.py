"""Make a detector of mmdet's zoo light, and recognise detectors that behave the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pipeline.mmdet_compat.registry import Config, plain, type_name

NOT_KEY = (
    *("init_cfg", "test_cfg", "mean", "std", "bgr_to_rgb", "frozen_stages", "norm_eval", "style"),
    *("requires_grad", "with_cp"),
)
SMALLER = {"nms_pre": 200, "max_per_img": 100, "num": 64, "num_queries": 100}  # as many as the views have places for
VIEW, SQUARE, LARGE = (128, 96), (128, 128), (256, 256)  # width and height of the views
SMALL = 16
DEEP = ("ResNet", "ResNeXt", "Res2Net", "ResNeSt", "DetectoRS_ResNet", "DetectoRS_ResNeXt")


def make_light(cfg: Config) -> None:
    """Change what decides time and machine only: depth, groups, numbers of boxes, pretrained weights, SyncBN, AMP."""
    visit(cfg.model, lighten)
    if type_name((cfg.get("optim_wrapper") or {}).get("type", "")) == "AmpOptimWrapper":
        cfg.optim_wrapper.type = "OptimWrapper"
        for key in ("loss_scale", "dtype"):
            cfg.optim_wrapper.pop(key, None)


def visit(value: Any, change: Callable[[dict[str, Any]], None]) -> None:
    """Call `change` for every dict in a config value."""
    if isinstance(value, dict):
        change(value)
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            visit(part, change)


def lighten(value: dict[str, Any]) -> None:
    """Make one part of a model light."""
    for key in ("init_cfg", "pretrained"):
        value.pop(key, None)
    if value.get("type") in ("SyncBN", "MMSyncBN"):
        value["type"] = "BN"
    if value.get("type") in DEEP and value.get("depth", 0) > 50:
        value["depth"] = 50
    if value.get("type") == "BatchFixedSizePad":
        value["size"] = (160, 160)
    if value.get("type") == "ResNeXt":  # a ResNet with grouped convolutions
        value["type"] = "ResNet"
        value.pop("groups", None)
        value.pop("base_width", None)
    if "groups" in value and "base_width" in value:
        value.update(groups=32, base_width=4)
    if value.get("type") == "SwinTransformer" and "depths" in value:
        value["depths"] = [min(6, depth) for depth in value["depths"]]
    value.update({k: most for k, most in SMALLER.items() if isinstance(value.get(k), int) and value[k] > most})


def key_of(cfg: Config) -> str:
    """Return what decides the outcome of `check_model`: configs with equal keys are run once.

    Widths, numbers of classes, thresholds and weights of losses are left out; small counts, such as those of levels and
    anchors, are kept.
    """

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: kept(v) for k, v in value.items() if k not in NOT_KEY}
        if isinstance(value, list):
            return [kept(v) for v in value]
        if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and value > SMALL):
            return "number"
        return "regnet" if isinstance(value, str) and value.startswith("regnet") else value

    wrapper = plain(dict(cfg.get("optim_wrapper") or {}))
    optimizer = {
        "type": (wrapper.get("optimizer") or {}).get("type"),
        **{name: wrapper.get(name) for name in ("constructor", "paramwise_cfg")},
    }
    return json.dumps([kept(plain(cfg.model.to_dict())), optimizer, loads(cfg), view_size(cfg)], sort_keys=True)


def loads(cfg: Config) -> dict[str, bool]:
    """Return what the student's losses need of the annotations, from the config's own pipeline."""
    text = json.dumps(plain(cfg.train_dataloader.to_dict()))
    panoptic = "LoadPanopticAnnotations" in text
    return {"with_mask": panoptic or '"with_mask": true' in text, "with_seg": panoptic or '"with_seg": true' in text}


def view_size(cfg: Config) -> tuple[int, int]:
    """Return the (width, height) of the views: small, and square where the config's pipeline pads to a fixed size.

    Some necks fit no other views. The last levels of SSD need those of the config, and the batch norms of an hourglass
    need some positions in its smallest level.
    """
    found = [VIEW]

    def look(part: dict[str, Any]) -> None:
        name = type_name(part.get("type", ""))
        if name == "Pad" and "size" in part:
            found.append(SQUARE)
        if name.endswith("SSDAnchorGenerator") and "input_size" in part:
            found.append((part["input_size"], part["input_size"]))
        if name == "HourglassNet":
            found.append(LARGE)

    visit([plain(cfg.train_dataloader.to_dict()), plain(cfg.model.to_dict())], look)
    return max(found)
