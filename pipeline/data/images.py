"""The images of a cache: those that mmdet's own dataset yields under its filter_cfg."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator
from typing import Any

import cv2

from pipeline.data.coco import annotation_path, check_annotations
from pipeline.errors import ConfigError, DataError, brief
from pipeline.mmdet_compat.registry import DATASETS, build, config_errors


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
        """Image ids in the order of the annotation file."""
        return list(self._index)

    def info(self, image_id: int) -> dict[str, Any]:
        """mmdet's data_info of one image: img_path, height, width, instances, ..."""
        if image_id not in self._index:
            raise DataError(f"image {image_id}: in the cache but not in {self.ann_file} under this filter_cfg")
        return self._dataset.get_data_info(self._index[image_id])
