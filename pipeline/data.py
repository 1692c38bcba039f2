"""The images of a cache: those that mmdet's own dataset yields under its filter_cfg, checked before anything runs."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from pipeline.errors import ConfigError, DataError, brief
from pipeline.mm import DATASETS, build, config_errors


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


@contextlib.contextmanager
def image_errors() -> Iterator[None]:
    """An image of the val set that mmdet cannot read, in one line: DataError naming the file."""
    try:
        yield
    except (AssertionError, FileNotFoundError, cv2.error) as error:
        line = brief(error)
        if isinstance(error, AssertionError) and "failed to load image" not in line:
            raise
        raise DataError(f"val set: {line.removeprefix('AssertionError: ')}") from error


class Images:
    """An mmdet dataset without its pipeline, by image id.

    `total` images in the annotation file, len(self) of them kept by filter_cfg. Raises ConfigError, DataError.
    """

    def __init__(self, dataset: dict[str, Any]) -> None:
        for key in ("dataset", "datasets"):
            if key in dataset:
                raise ConfigError(
                    f"dataset wrapper {dataset.get('type')}: a cache is keyed by the images of one dataset; use the "
                    "inner dataset itself"
                )
        config = copy.deepcopy(dict(dataset))
        steps = config.pop("pipeline", None)
        if not isinstance(steps, list) or not all(isinstance(s, dict) and "type" in s for s in steps):
            raise ConfigError("train_dataloader.dataset.pipeline: expected a list of transforms, each dict(type=...)")
        self.pipeline: list[dict[str, Any]] = [dict(step) for step in steps]
        self.ann_file = annotation_path(config)
        self.filter_cfg = config.get("filter_cfg")
        classes = (config.get("metainfo") or {}).get("classes")
        self.total, names = check_annotations(self.ann_file, classes)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            lazy = {**config, "pipeline": [], "lazy_init": True}
            self._dataset = build(DATASETS, lazy, "train_dataloader.dataset")
            with config_errors("train_dataloader.dataset"):
                try:
                    self._dataset.full_init()
                except ValueError as error:
                    if "need at least one array" not in str(error):  # what mmengine says of an empty list
                        raise
                    raise DataError(f"{self.ann_file}: no image is left after filter_cfg={self.filter_cfg}") from error
        self.type = str(config["type"])
        self.classes = tuple(self._dataset.metainfo["classes"])
        self.metainfo = dict(self._dataset.metainfo)
        # mmdet's default classes (COCO's 80) on a file that has none of them would train on nothing.
        if not names & set(self.classes):
            raise DataError(
                f"{self.ann_file}: none of its categories {sorted(names)[:5]} is a class of the dataset; set "
                "metainfo.classes"
            )
        self._index = {int(self._dataset.get_data_info(i)["img_id"]): i for i in range(len(self._dataset))}

    def __len__(self) -> int:
        return len(self._index)

    @property
    def ids(self) -> list[int]:
        return list(self._index)

    def info(self, image_id: int) -> dict[str, Any]:
        """mmdet's data_info of one image: img_path, height, width, instances, ..."""
        if image_id not in self._index:
            raise DataError(f"image {image_id}: in the cache but not in {self.ann_file} under this filter_cfg")
        return self._dataset.get_data_info(self._index[image_id])
