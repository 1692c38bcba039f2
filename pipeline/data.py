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

from pipeline.errors import ConfigError, DataError
from pipeline.mm import DATASETS, build, config_errors


def annotation_path(dataset: dict[str, Any]) -> Path:
    """Where mmdet looks for ann_file: beside data_root unless absolute."""
    if not dataset.get("ann_file"):
        raise ConfigError("train_dataloader.dataset.ann_file: missing; a COCO annotation file is needed")
    return Path(dataset.get("data_root") or "") / dataset["ann_file"]


def check_annotations(path: Path, classes: tuple[str, ...] | None) -> int:
    """Refuse what mmdet would accept silently or explain badly. Returns the number of images in the file.

    Raises DataError: missing, not JSON, not COCO, duplicate image ids, classes that the file does not have.
    """
    if not path.is_file():
        raise DataError(f"{path}: annotation file not found; set data_root and ann_file")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        images, categories = content["images"], content["categories"]
        ids, names = [image["id"] for image in images], {category["name"] for category in categories}
        content["annotations"]
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a JSON file: {error}") from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not a COCO annotation file: no {error} in it") from error
    twice = [image for image, n in Counter(ids).items() if n > 1]
    if twice:
        raise DataError(f"{path}: image id {twice[0]!r} occurs more than once ({len(twice)} such ids)")
    wrong = [image for image in ids if isinstance(image, bool) or not isinstance(image, int)]
    if wrong:
        raise DataError(f"{path}: image ids must be whole numbers, found {wrong[0]!r}")
    for name in classes or ():
        if name not in names:
            raise DataError(f"{path}: class {name!r} of metainfo is not among its categories {sorted(names)[:5]}...")
    return len(ids)


@contextlib.contextmanager
def image_errors() -> Iterator[None]:
    """An image of the val set that mmdet cannot read, in one line: DataError naming the file."""
    try:
        yield
    except (AssertionError, FileNotFoundError) as error:
        line = str(error).strip().splitlines()[-1] if str(error).strip() else ""
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
        self.pipeline: list[dict[str, Any]] = [dict(step) for step in config.pop("pipeline", [])]
        self.ann_file = annotation_path(config)
        self.filter_cfg = config.get("filter_cfg")
        classes = (config.get("metainfo") or {}).get("classes")
        self.total = check_annotations(self.ann_file, classes)
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
        check_annotations_classes(self.ann_file, self.classes, given=classes is not None)
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


def check_annotations_classes(path: Path, classes: tuple[str, ...], given: bool) -> None:
    """mmdet's default classes (COCO's 80) on a file that has none of them would train on nothing."""
    if given:
        return
    names = {category["name"] for category in json.loads(path.read_text())["categories"]}
    if not names & set(classes):
        raise DataError(
            f"{path}: none of its categories {sorted(names)[:5]} is a class of the dataset; set metainfo.classes"
        )
