"""Data set wrappers and formats: which of mmdet's a cache can use, and what replaces the others.

RepeatDataset repeats an epoch, and ConcatDataset joins data sets. A cache can use RepeatDataset(ConcatDataset(...)).
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from pipeline.data.transforms import without_mixing
from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import DATASETS, type_name


def unwrap(dataset: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Return the data sets inside wrappers, and how often they are repeated. Raise ConfigError for other wrappers."""
    inner, repeats = dict(dataset), 1
    while "dataset" in inner or "datasets" in inner:
        if type_name(inner.get("type")) == "ConcatDataset":
            return _joined(inner), repeats
        kind, times = type_name(inner.get("type")), inner.get("times")
        if kind != "RepeatDataset" or not isinstance(inner.get("dataset"), dict):
            raise ConfigError(f"train_dataloader.dataset: wrapper {kind}: {what_to_use_instead(kind, inner)}")
        if isinstance(times, bool) or not isinstance(times, int) or times < 1:
            raise ConfigError(f"train_dataloader.dataset.times: expected a whole number of at least 1, found {times!r}")
        inner, repeats = dict(inner["dataset"]), repeats * times
    return [inner], repeats


def _joined(wrapper: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the data sets of a ConcatDataset, which may contain other ones. Raise ConfigError."""
    where, given = "train_dataloader.dataset.datasets", wrapper.get("datasets")
    if not isinstance(given, list | tuple) or not given or not all(isinstance(one, dict) for one in given):
        raise ConfigError(f"{where}: expected a list of data sets, found {given!r:.60}")
    found = []
    for one in given:
        parts, repeats = unwrap(one)
        if repeats != 1:
            raise ConfigError(
                f"{where}: one of them is a RepeatDataset, but an epoch of a cache shows each image equally often; put "
                "the RepeatDataset around the ConcatDataset"
            )
        found += parts
    return found


def what_to_use_instead(kind: str, wrapper: dict[str, Any]) -> str:
    """Say why a cache cannot use a data set wrapper, and what replaces it."""
    if kind == "MultiImageMixDataset":
        names = [type_name(t["type"]) for t in wrapper.get("pipeline") or [] if isinstance(t, dict) and "type" in t]
        return f"mixes images, so views cannot be cached; use its inner dataset; pipeline: {without_mixing(names)}"
    if kind == "ClassBalancedDataset":
        return "shows some images more often, but an epoch of a cache shows each once; use its inner dataset"
    return "a cache is keyed by the images of one dataset; use the inner dataset itself"


def require_boxes(config: dict[str, Any], path: Path, where: str = "train_dataloader.dataset") -> None:
    """Raise ConfigError for a data set class of mmdet that reads another format than COCO's boxes."""
    given = config.get("type")
    kind = DATASETS.get(given) if isinstance(given, str) else given
    coco: Any = DATASETS.get("CocoDataset")
    foreign = inspect.isclass(kind) and kind.__module__.startswith("mmdet.") and not issubclass(kind, coco)
    if foreign or type_name(given) == "CocoPanopticDataset":
        raise ConfigError(
            f"{where}: {type_name(given)} does not read boxes in COCO's format; convert "
            f"{path} to a COCO annotation file, and use CocoDataset with metainfo=dict(classes=...)"
        )
