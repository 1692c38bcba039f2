"""The val side of a config, checked against the training side before anything runs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.coco import Annotations, annotation_path, check_annotations
from pipeline.data.image_file import build_dataset
from pipeline.data.images import image_errors
from pipeline.data.wrappers import require_boxes
from pipeline.errors import ConfigError, DataError, brief
from pipeline.mmdet_compat.registry import Config, type_name


def check_validation(cfg: Config, classes: Sequence[str]) -> None:
    """Refuse a val set on which mAP cannot be measured, or would be that of other classes than the training set's.

    classes: of the training set, in label order. Raises ConfigError or DataError.
    """
    for key in ("val_dataloader", "val_evaluator"):
        if not isinstance(cfg.get(key), dict | list):
            raise ConfigError(f"{key}: missing in the config; the teacher and the student are measured on a val set")
    loader = cfg.val_dataloader
    for key in ("persistent_workers", "prefetch_factor", "timeout"):
        if loader.get(key) and not loader.get("num_workers"):
            raise ConfigError(f"val_dataloader: {key}={loader[key]} needs num_workers above 0, found 0; remove it")
    sampler = loader.get("sampler") or {}
    if isinstance(sampler, dict) and type_name(sampler.get("type")) == "InfiniteSampler":
        raise ConfigError("val_dataloader.sampler: InfiniteSampler never ends; use dict(type='DefaultSampler')")
    if loader.get("drop_last"):
        raise ConfigError("val_dataloader.drop_last=True: leaves out images, which would count as missed; remove it")
    dataset = loader.get("dataset")
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
    shown.require_boxes(classes)
    metric = coco_metric(cfg.val_evaluator)
    _check_metric(metric, cfg.get("model"))
    _check_evaluator(metric, path, shown, classes)


def prepare_metric(metric: Any, dataset: Any) -> list[dict[str, Any]]:
    """Correct two ways in which a CocoMetric measures too low a mAP. Return mmdet's data_info of the data set's images.

    It scores all images of its file: those that the data set does not show would count as missed. And pycocotools takes
    the annotation id 0 for "no match", so a found box of this id would count as false.
    """
    coco: Any = getattr(metric, "_coco_api", None)
    rows = coco.dataset["annotations"] if coco is not None else []
    if any(row["id"] == 0 for row in rows):
        for number, row in enumerate(rows, start=1):
            row["id"] = number
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            coco.createIndex()
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    metric.img_ids = [info["img_id"] for info in infos]
    return infos


@contextlib.contextmanager
def measure_errors() -> Iterator[None]:
    """Raise ConfigError where mmdet cannot load, predict or process a val batch, DataError for an unreadable image."""
    try:
        with image_errors():
            yield
    except StopIteration as error:
        raise ConfigError("val_dataloader: gives no batch; check its data set, sampler and drop_last") from error
    except (AssertionError, AttributeError, KeyError, IndexError, NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(
            f"val_dataloader, val_evaluator: a batch cannot be measured: {brief(error)}; compare the pipeline (its "
            "meta_keys too) and the metric with those of mmdet's own config"
        ) from error


def _has_part(model: Any, name: str) -> bool:
    """Return whether a detector's config has a part whose key contains `name`, such as 'mask' or 'bbox_head'."""
    if isinstance(model, dict):
        return any(
            (name in str(key) and isinstance(part, dict | list | tuple)) or _has_part(part, name)
            for key, part in model.items()
        )
    return isinstance(model, list | tuple) and any(_has_part(part, name) for part in model)


def measures_masks(model: Any) -> bool:
    """Return whether the mAP of a detector's config is that of masks: it has masks, and no head of boxes (SOLO)."""
    return _has_part(model, "mask") and not any(_has_part(model, name) for name in ("bbox_head", "rpn_head"))


def _check_metric(metric: dict[str, Any], model: Any) -> None:
    """Raise ConfigError for a CocoMetric that does not report the mAP of the student: of boxes, or of its masks."""
    kinds, items = metric.get("metric", "bbox"), metric.get("metric_items")
    kinds, wanted = [kinds] if isinstance(kinds, str) else kinds, "segm" if measures_masks(model) else "bbox"
    if not isinstance(kinds, list | tuple) or wanted not in kinds or ("segm" in kinds and not _has_part(model, "mask")):
        what = "masks only" if wanted == "segm" else "boxes"
        raise ConfigError(
            f"val_evaluator.metric: expected {wanted!r}, because the student predicts {what}, found {kinds!r:.80}"
        )
    if metric.get("format_only"):
        raise ConfigError("val_evaluator.format_only=True: measures nothing; remove it")
    if items is not None and not {"mAP", "mAP_50"} <= set(items):
        raise ConfigError(f"val_evaluator.metric_items: expected 'mAP' and 'mAP_50' among them, found {items!r:.80}")


def _check_evaluator(metric: dict[str, Any], path: Path, shown: Annotations, classes: Sequence[str]) -> None:
    """The metric must know every image and class that the val set shows."""
    file = metric.get("ann_file")
    if file is None:
        return
    if not isinstance(file, str):
        raise ConfigError(f"val_evaluator.ann_file: expected a path, found {file!r:.60}")
    if Path(file) == path:
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
