"""COCO annotation files, checked before anything runs. Needs no mmdet."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DataError


def annotation_path(dataset: Any, where: str = "train_dataloader.dataset") -> Path:
    """Where mmdet looks for ann_file: beside data_root unless absolute."""
    if not isinstance(dataset, dict) or not isinstance(dataset.get("ann_file"), str):
        raise ConfigError(f"{where}.ann_file: missing; a COCO annotation file is needed")
    return Path(dataset.get("data_root") or "") / dataset["ann_file"]


def read_coco(path: Path) -> dict[str, Any]:
    """An annotation file as JSON. Raises DataError: missing, not JSON, not COCO."""
    if not path.is_file():
        raise DataError(f"{path}: annotation file not found; set data_root and ann_file")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file: {error}") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise DataError(f"{path}: not a COCO annotation file: no list {part!r} in it")
    return content


def _require(path: Path, rows: list[Any], what: str, fields: tuple[str, ...]) -> None:
    for number, row in enumerate(rows):
        for field in fields:
            if not isinstance(row, dict) or field not in row:
                raise DataError(f"{path}: {what} number {number} has no {field!r}")


def check_annotations(path: Path, classes: tuple[str, ...] | None, evaluated: bool = False) -> tuple[int, set[str]]:
    """Refuse what mmdet would accept silently or explain badly. Returns its number of images and its category names.

    `evaluated`: mAP is to be measured on it. Raises DataError: missing, not COCO, fields missing or not whole
    numbers, duplicate image ids, classes that the file does not have.
    """
    content = read_coco(path)
    _require(path, content["images"], "image", ("id", "file_name", "width", "height"))
    _require(path, content["categories"], "category", ("id", "name"))
    fields = ("image_id", "category_id", "bbox", "area") + (("iscrowd",) if evaluated else ())
    _require(path, content["annotations"], "annotation", fields)
    for image in content["images"]:
        for field, least in (("id", -(2**62)), ("width", 1), ("height", 1)):
            value = image[field]
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise DataError(f"{path}: image {image['id']!r}: {field} must be a whole number, found {value!r}")
    twice = [image for image, n in Counter(image["id"] for image in content["images"]).items() if n > 1]
    if twice:
        raise DataError(f"{path}: image id {twice[0]!r} occurs more than once ({len(twice)} such ids)")
    names = {category["name"] for category in content["categories"]}
    for name in classes or ():
        if name not in names:
            raise DataError(f"{path}: class {name!r} of metainfo is not among its categories {sorted(names)[:5]}...")
    return len(content["images"]), names
