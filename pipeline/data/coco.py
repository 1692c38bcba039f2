"""COCO annotation files, checked before anything runs. Needs no mmdet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.coco_file import read_coco
from pipeline.errors import ConfigError, DataError

LARGEST_ID = 2**62  # of an image, so that a record's int64 holds it


@dataclass(frozen=True)
class Annotations:
    """What a sound annotation file holds.

    `categories`: (id, name) in the file's order, which is the order in which mmdet numbers labels. `boxes`: number of
    annotations by category id; ids that no category has are counted too. `orphans`: annotations of unlisted images.
    `shown`: annotations of listed images by category id, without crowds. `small`: those whose box mmdet drops.
    """

    path: Path
    image_ids: frozenset[int]
    categories: tuple[tuple[int | str, str], ...]
    boxes: Counter[int | str]
    orphans: int
    shown: Counter[int | str]
    small: Counter[int | str]

    def notes(self, classes: Sequence[str]) -> list[str]:
        """What mmdet leaves out without a word, a line each."""
        names = dict(self.categories)
        others = {key: n for key, n in self.boxes.items() if names.get(key) not in set(classes)}
        lines = []
        if others:
            shown = ", ".join(f"{names.get(key, f'id {key}'):.80}: {n}" for key, n in list(others.items())[:3])
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            lines.append(f"{sum(others.values())} boxes of categories that are no class ({shown}{more}) are left out")
        if self.orphans:
            lines.append(f"{self.orphans} boxes of images that the file does not list are left out")
        small = sum(n for key, n in self.small.items() if names.get(key) in set(classes))
        if small:
            lines.append(f"{small} boxes without area, below one pixel or outside their image are left out")
        return lines

    def require_boxes(self, classes: Sequence[str]) -> None:
        """Raise DataError where no box counts for the mAP: of a class, of a listed image, and not a crowd."""
        names = dict(self.categories)
        if not any(names.get(key) in set(classes) for key in self.shown):
            raise DataError(
                f"{self.path}: none of its {len(self.image_ids)} images has a box of a class that is no crowd, so no "
                "mAP can be measured; check metainfo.classes, category ids, image ids and iscrowd"
            )

    def require_classes(self, classes: Sequence[str]) -> None:
        """Refuse a file in which mmdet would give a label to another class than `classes` does.

        mmdet numbers the categories whose name is a class, in the file's order. Raises DataError.
        """
        present = {name for _, name in self.categories}
        for name in classes:
            if name not in present:
                raise DataError(
                    f"{self.path}: class {name!r} of metainfo is not among its categories "
                    f"{sorted(present)[:5]!s:.200}..."
                )
        labels = [name for _, name in self.categories if name in set(classes)]
        repeated = [name for name, n in Counter(labels).items() if n > 1]
        if repeated:
            raise DataError(
                f"{self.path}: {repeated[0]!r:.80} is the name of more than one category, so mmdet numbers "
                f"{len(labels)} labels for {len(classes)} classes; remove or rename the category that is not the class"
            )
        for number, (found, wanted) in enumerate(zip(labels, classes)):
            if found != wanted:
                raise DataError(
                    f"{self.path}: label {number} is {found!r:.80} by the order of its categories, expected {wanted!r} "
                    "by metainfo.classes; mmdet numbers labels in the file's order: list the categories in the order "
                    "of the classes, in every annotation file"
                )


def annotation_path(dataset: Any, where: str = "train_dataloader.dataset") -> Path:
    """Where mmdet looks for ann_file: beside data_root unless absolute."""
    if not isinstance(dataset, dict) or not isinstance(dataset.get("ann_file"), str):
        raise ConfigError(f"{where}.ann_file: missing; a COCO annotation file is needed")
    return Path(dataset.get("data_root") or "") / dataset["ann_file"]


def check_annotations(path: Path, evaluated: bool = False) -> Annotations:
    """Read an annotation file without its masks, and check it as `check_content` does."""
    return check_content(path, read_coco(path, masks=False)[0], evaluated)


def check_content(path: Path, content: dict[str, Any], evaluated: bool = False) -> Annotations:
    """Refuse what mmdet would accept silently or explain badly.

    `evaluated`: mAP is to be measured on it. Raises DataError naming file, row and id: missing, not COCO, fields
    missing or of another type, ids that occur twice or have another type than what they refer to.
    """
    image_ids = _image_ids(path, content["images"])
    categories = _categories(path, content["categories"])
    fields = ("id", "image_id", "category_id", "bbox", "area") + (("iscrowd",) if evaluated else ())
    _require(path, content["annotations"], "annotation", fields)
    category_ids, boxes, orphans = dict(categories), Counter[int | str](), 0
    shown, small = Counter[int | str](), Counter[int | str]()
    for number, row in enumerate(content["annotations"]):
        image, category, box, area = row["image_id"], row["category_id"], row["bbox"], row["area"]
        size = image_ids.get(image) if type(image) is int else None
        if size is None or type(category) is not int or category not in category_ids:
            where = _where(path, number, row)
            orphans += not _refers(where, "image_id", image, image_ids)
            _refers(where, "category_id", category, category_ids)
        boxes[category] += 1
        if not isinstance(box, list) or len(box) != 4 or not all(map(_finite, box)):
            what = "bbox must be four finite numbers [x, y, width, height]"
            raise DataError(f"{_where(path, number, row)}: {what}, found {box!r:.80}")
        if not _finite(area):
            raise DataError(f"{_where(path, number, row)}: area must be a finite number, found {area!r:.40}")
        crowd, ignored = row.get("iscrowd", 0), row.get("ignore", 0)
        for field, value in (("iscrowd", crowd), ("ignore", ignored)):
            if value not in (0, 1):  # bools too; mmdet would take the text "0" for true
                raise DataError(f"{_where(path, number, row)}: {field} must be 0 or 1, found {value!r:.40}")
        if size is not None and not ignored:
            dropped = _is_dropped(box, area, size)
            small[category] += dropped
            shown[category] += not (dropped or crowd)
    _require_unique(path, "annotation", [row["id"] for row in content["annotations"]])
    return Annotations(path, frozenset(image_ids), categories, boxes, orphans, +shown, +small)


def _where(path: Path, number: int, row: dict[str, Any]) -> str:
    return f"{path}: annotation number {number} (id {row['id']!r:.40})"


def _image_ids(path: Path, rows: list[Any]) -> dict[int, tuple[int, int]]:
    """Return the (width, height) of every image by its id."""
    _require(path, rows, "image", ("id", "file_name", "width", "height"))
    for number, row in enumerate(rows):
        where = f"{path}: image number {number} (id {row['id']!r:.40})"
        if not isinstance(row["file_name"], str):
            raise DataError(f"{where}: file_name must be text, found {row['file_name']!r:.40}")
        for field, least, most in (("id", -LARGEST_ID, LARGEST_ID), ("width", 1, 2**31), ("height", 1, 2**31)):
            value = row[field]
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise DataError(f"{where}: {field} must be a whole number from {least} to {most}, found {value!r:.40}")
    _require_unique(path, "image", [row["id"] for row in rows])
    return {row["id"]: (row["width"], row["height"]) for row in rows}


def _is_dropped(box: list[float], area: float, size: tuple[int, int]) -> bool:
    """Return whether mmdet drops a box: without area, below one pixel, or outside its image of this (width, height)."""
    x, y, w, h = box
    across = max(0, min(x + w, size[0]) - max(x, 0))
    down = max(0, min(y + h, size[1]) - max(y, 0))
    return across * down == 0 or area <= 0 or w < 1 or h < 1


def _categories(path: Path, rows: list[Any]) -> tuple[tuple[int | str, str], ...]:
    _require(path, rows, "category", ("id", "name"))
    for number, row in enumerate(rows):
        where = f"{path}: category number {number}"
        if isinstance(row["id"], bool) or not isinstance(row["id"], int | str):
            raise DataError(f"{where}: id must be a whole number, found {row['id']!r:.40}")
        if not isinstance(row["name"], str):
            raise DataError(f"{where} (id {row['id']!r:.40}): name must be text, found {row['name']!r:.40}")
    _require_unique(path, "category", [row["id"] for row in rows])
    if len({type(row["id"]) for row in rows}) > 1:
        raise DataError(f"{path}: some category ids are numbers and others are text; write all as numbers")
    return tuple((row["id"], row["name"]) for row in rows)


def _require(path: Path, rows: list[Any], what: str, fields: tuple[str, ...]) -> None:
    needed = set(fields)
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not needed <= row.keys():
            missing = next(field for field in fields if not isinstance(row, dict) or field not in row)
            raise DataError(f"{path}: {what} number {number} has no {missing!r}")


def _require_unique(path: Path, what: str, ids: list[Any]) -> None:
    for value in ids:
        if isinstance(value, bool) or not isinstance(value, int | str) or not _is_small(value):
            raise DataError(f"{path}: {what} id must be a whole number below 2^62, found {value!r:.40}")
    if len(set(ids)) < len(ids):
        twice = [value for value, n in Counter(ids).items() if n > 1]
        raise DataError(f"{path}: {what} id {twice[0]!r:.40} occurs more than once ({len(twice)} such ids)")


def _is_small(value: int | str) -> bool:
    """Return whether a whole number fits into numpy's and pycocotools' arrays."""
    return isinstance(value, str) or abs(value) <= LARGEST_ID


def _refers(where: str, field: str, value: Any, known: dict[Any, Any]) -> bool:
    """Whether an id is known. Raises DataError where it would be if it had the type of what it refers to."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: {field} must be a whole number, found {value!r:.40}")
    if value in known:
        return True
    other = str(value) if isinstance(value, int) else int(value) if value.strip().lstrip("-").isdecimal() else None
    if other is not None and other in known:
        raise DataError(
            f"{where}: {field} is {value!r:.40}, the id that it refers to is {other!r:.40}; mmdet drops such boxes "
            "without a word: write both as numbers"
        )
    return False


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e18
