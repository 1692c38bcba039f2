"""The images of one annotation file: those that mmdet's own dataset yields under its filter_cfg."""

from __future__ import annotations

import contextlib
import io
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.data.coco import annotation_path
from pipeline.data.coco_file import require_file
from pipeline.data.dataset_rows import ignores_masks, parse_rows, sharing_key, uses_masks
from pipeline.data.image_rows import load_or_parse, share_rows
from pipeline.data.wrappers import require_boxes
from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import DATASETS, build, type_name
from pipeline.storage.local import sha256_file


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

    pipeline: its transforms. `folder`: where the parsed file is kept for other processes and later starts (default:
    nowhere). `total` images in the file, len(self) of them kept by filter_cfg. `notes`: what mmdet leaves out without a
    word, a line each. `sha256`: of the file. Raises ConfigError or DataError, also where mmdet's labels are not those
    of `classes`.
    """

    def __init__(self, config: dict[str, Any], pipeline: list[dict[str, Any]], folder: Path | None = None) -> None:
        self.ann_file = annotation_path(config)
        self.filter_cfg = config.get("filter_cfg")
        require_boxes(config, self.ann_file)
        require_file(self.ann_file)
        built = build_dataset(config, "train_dataloader.dataset")
        self.type = type_name(config["type"])
        self.metainfo = dict(built.metainfo)
        self.classes = tuple(self.metainfo["classes"])
        self.sha256 = sha256_file(self.ann_file)
        masks = not ignores_masks(built) or uses_masks(pipeline)
        key = sharing_key(built, config, self.sha256, masks)
        parse = partial(parse_rows, built, self.ann_file, self.sha256, masks)
        self._rows = share_rows(parse()) if folder is None or key is None else load_or_parse(folder, key, parse)
        self.total, self.notes = self._rows.total, self._rows.notes

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image_id: int) -> bool:
        return self._rows.find(image_id) is not None

    @property
    def ids(self) -> list[int]:
        """Image ids in the order of the annotation file."""
        return self._rows.ids

    def size(self, image_id: int) -> tuple[int, int]:
        """Return the annotated (height, width) of one of its images."""
        return self._rows.size(self._position(image_id))

    def info(self, image_id: int) -> dict[str, Any]:
        """mmdet's data_info of one of its images: img_path, height, width, instances, ..."""
        return self._rows.row(self._position(image_id))

    def _position(self, image_id: int) -> int:
        found = self._rows.find(image_id)
        if found is None:
            raise KeyError(image_id)
        return found
