"""The val side of a config, checked against the training side before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.coco import Annotations, annotation_path, check_annotations
from pipeline.data.images import build_dataset
from pipeline.data.wrappers import require_boxes
from pipeline.errors import ConfigError, DataError
from pipeline.mmdet_compat.registry import Config, type_name


def check_validation(cfg: Config, classes: Sequence[str]) -> None:
    """Refuse a val set on which mAP cannot be measured, or would be that of other classes than the training set's.

    classes: of the training set, in label order. Raises ConfigError or DataError.
    """
    for key in ("val_dataloader", "val_evaluator"):
        if not isinstance(cfg.get(key), dict | list):
            raise ConfigError(f"{key}: missing in the config; the teacher and the student are measured on a val set")
    loader = cfg.val_dataloader
    if loader.get("persistent_workers") and not loader.get("num_workers"):
        raise ConfigError("val_dataloader: persistent_workers=True needs num_workers above 0, found 0; set it to False")
    dataset = dict(loader.get("dataset") or {})
    path = annotation_path(dataset, "val_dataloader.dataset")
    require_boxes(dataset, path, "val_dataloader.dataset")
    shown = check_annotations(path, evaluated=True)
    found = tuple(build_dataset(dataset, "val_dataloader.dataset").metainfo["classes"])
    if found != tuple(classes):
        number = next((n for n, (a, b) in enumerate(zip(found, classes)) if a != b), min(len(found), len(classes)))
        raise DataError(
            f"val_dataloader.dataset: has {len(found)} classes, the training set {len(classes)}; first difference: "
            f"label {number}, {_name(found, number)} and {_name(classes, number)}; give both the same metainfo.classes"
        )
    shown.require_classes(classes)
    _check_evaluator(coco_metric(cfg.val_evaluator), path, shown, classes)


def _check_evaluator(metric: dict[str, Any], path: Path, shown: Annotations, classes: Sequence[str]) -> None:
    """The metric must know every image and class that the val set shows."""
    file = metric.get("ann_file")
    if file is None or Path(file) == path:
        return
    scored = check_annotations(Path(file), evaluated=True)
    scored.require_classes(classes)
    missing = shown.image_ids - scored.image_ids
    if missing:
        raise DataError(
            f"val_evaluator.ann_file: {file} lacks {len(missing)} of the {len(shown.image_ids)} images of {path}, id "
            f"{min(missing)} for one; give val_evaluator and val_dataloader the same annotation file"
        )


def coco_metric(evaluators: Any) -> dict[str, Any]:
    """Return the config of the CocoMetric among `val_evaluator`, which mmengine takes as a dict or a list of dicts."""
    found = list(evaluators) if isinstance(evaluators, list | tuple) else [evaluators]
    for metric in found:
        if isinstance(metric, dict) and type_name(metric.get("type")) == "CocoMetric":
            return metric
    raise ConfigError(f"val_evaluator: expected a CocoMetric to measure mAP with, found {found!r:.120}")


def _name(classes: Sequence[str], number: int) -> str:
    return repr(classes[number]) if number < len(classes) else "none"
