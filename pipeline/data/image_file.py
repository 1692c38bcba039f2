"""The images of one annotation file: those that mmdet's own dataset yields under its filter_cfg."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from pipeline.data.coco import Annotations, annotation_path, check_annotations
from pipeline.data.wrappers import require_boxes
from pipeline.errors import ConfigError, DataError
from pipeline.mmdet_compat.registry import DATASETS, build, config_errors, type_name


def build_dataset(config: dict[str, Any], where: str) -> Any:
    """Build an mmdet data set without pipeline and without reading its file. Raises ConfigError naming `where`."""
    metainfo = config.get("metainfo") or {}
    if not isinstance(metainfo, dict):
        raise ConfigError(f"{where}.metainfo: expected dict(classes=...), found {metainfo!r:.60}")
    other = next((key for key in metainfo if str(key) != "classes" and str(key).lower() == "classes"), None)
    if other is not None:
        raise ConfigError(f"{where}.metainfo.{other}: mmdet ignores this key; write it in lower case, as classes")
    classes = metainfo.get("classes", ())
    if not isinstance(classes, str | tuple | list):
        raise ConfigError(f"{where}.metainfo.classes: expected a tuple of names, found {classes!r:.60}")
    if isinstance(classes, str) and not Path(classes).is_file():
        raise ConfigError(
            f"{where}.metainfo.classes: expected a tuple of names or a text file with a name a line, found "
            f"{classes!r}; a tuple of one name needs a comma: ({classes!r},)"
        )
    with contextlib.redirect_stdout(io.StringIO()):
        return build(DATASETS, {**config, "pipeline": [], "lazy_init": True}, where)


class ImageFile:
    """An mmdet dataset of one annotation file, without its pipeline, by image id.

    `total` images in the file, len(self) of them kept by filter_cfg. `notes`: what mmdet leaves out without a word, a
    line each. Raises ConfigError or DataError, also where mmdet's labels are not those of `classes`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.ann_file = annotation_path(config)
        self.filter_cfg = config.get("filter_cfg")
        require_boxes(config, self.ann_file)
        annotations = check_annotations(self.ann_file)
        self.total = len(annotations.image_ids)
        self._dataset = build_dataset(config, "train_dataloader.dataset")
        with contextlib.redirect_stdout(io.StringIO()), config_errors("train_dataloader.dataset"):  # pycocotools prints
            try:
                self._dataset.full_init()
            except ValueError as error:
                if "need at least one array" not in str(error):  # what mmengine says of an empty list
                    raise
                raise DataError(f"{self.ann_file}: no image is left after filter_cfg={self.filter_cfg}") from error
        self.type = type_name(config["type"])
        self.metainfo = dict(self._dataset.metainfo)
        self.classes = tuple(self.metainfo["classes"])
        annotations.require_classes(self.classes)
        self._require_numbered_by(annotations)
        self.notes = annotations.notes(self.classes)
        self._index: dict[int, int] = {}
        boxes = 0
        for index in range(len(self._dataset)):
            info = self._dataset.get_data_info(index)
            self._index[int(info["img_id"])] = index
            boxes += sum(not instance["ignore_flag"] for instance in info["instances"])
        if not boxes:
            raise DataError(
                f"{self.ann_file}: none of its {len(self)} images has a box of a class that mmdet keeps and that is no "
                "crowd; check metainfo.classes, category ids, box sizes and iscrowd"
            )

    def _require_numbered_by(self, annotations: Annotations) -> None:
        """Compare the labels that mmdet made with the classes: a data set class may number them in its own way."""
        ids = getattr(self._dataset, "cat_ids", None)
        names = dict(annotations.categories)
        if ids is not None and [names.get(key) for key in ids] != list(self.classes):
            raise DataError(
                f"{self.ann_file}: {self.type} numbers its labels as {[names.get(key) for key in ids][:5]}..., "
                f"expected the order of metainfo.classes, {list(self.classes)[:5]}..."
            )

    def __len__(self) -> int:
        return len(self._index)

    @property
    def ids(self) -> list[int]:
        """Image ids in the order of the annotation file."""
        return list(self._index)

    def info(self, image_id: int) -> dict[str, Any]:
        """mmdet's data_info of one image: img_path, height, width, instances, ..."""
        return self._dataset.get_data_info(self._index[image_id])
