"""Annotation files: what mmdet would make of them is right, or is refused in one line that names file, row and id."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.coco import Annotations, check_annotations
from pipeline.errors import DataError

CLASSES = ("person", "car", "dog")
Change = Callable[[dict[str, Any]], object]


def content() -> dict[str, Any]:
    """A small sound file: three classes, two images, four boxes."""
    images = [{"id": 7 + n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in range(2)]
    boxes = [
        {
            "id": 1 + n,
            "image_id": 7 + n % 2,
            "category_id": 1 + n % 3,
            "bbox": [1, 2, 8.5, 9],
            "area": 76.5,
            "iscrowd": 0,
        }
        for n in range(4)
    ]
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(CLASSES)]
    return {"images": images, "annotations": boxes, "categories": categories}


def checked(folder: Path, change: Change, evaluated: bool = False) -> Annotations:
    found = content()
    change(found)
    path = folder / "instances.json"
    path.write_text(json.dumps(found))
    annotations = check_annotations(path, evaluated)
    annotations.require_classes(CLASSES)
    return annotations


def test_a_sound_file(tmp_path: Path) -> None:
    found = checked(tmp_path, lambda c: None, evaluated=True)
    assert found.image_ids == {7, 8} and found.categories == ((1, "person"), (2, "car"), (3, "dog"))
    assert found.boxes == {1: 2, 2: 1, 3: 1} and found.notes(CLASSES) == []


def test_categories_that_are_no_class_do_not_shift_labels(tmp_path: Path) -> None:
    """They may lie anywhere in the file; their boxes are counted."""
    found = checked(
        tmp_path,
        lambda c: (
            c["categories"].insert(0, {"id": 0, "name": "background"}),
            c["categories"].insert(2, {"id": 9, "name": "cat"}),
            c["annotations"][0].update(category_id=9),
            c["annotations"][1].update(category_id=44),
        ),
    )
    assert found.notes(CLASSES) == ["2 boxes of categories that are no class (cat: 1, id 44: 1) are left out"]


def test_boxes_of_unlisted_images_are_counted(tmp_path: Path) -> None:
    found = checked(tmp_path, lambda c: c["annotations"][3].update(image_id=99))
    assert found.notes(CLASSES) == ["1 boxes of images that the file does not list are left out"]


def test_boxes_that_mmdet_drops_are_counted(tmp_path: Path) -> None:
    """Without area, below one pixel, or outside the image of 64x48."""
    boxes = ([1, 2, -8, 9], [1, 2, 0.5, 9], [64, 2, 8, 9], [1, 2, 8, 9])
    found = checked(tmp_path, lambda c: [row.update(bbox=box) for row, box in zip(c["annotations"], boxes)])
    line = "3 boxes without area, below one pixel or outside their image are left out"
    assert found.notes(CLASSES) == [line] and found.shown == {1: 1}


def test_a_file_without_a_box_to_measure(tmp_path: Path) -> None:
    for change in ({"iscrowd": 1}, {"ignore": 1}, {"image_id": 99}, {"category_id": 99}, {"area": 0}):
        found = checked(tmp_path, lambda c, change=change: [row.update(change) for row in c["annotations"]])
        with pytest.raises(DataError, match="none of its 2 images has a box of a class that is no crowd"):
            found.require_boxes(CLASSES)
    checked(tmp_path, lambda c: c["annotations"][0].update(iscrowd=True)).require_boxes(CLASSES)


WRONG: dict[str, tuple[Change, str]] = {
    "crowd as text": (
        lambda c: c["annotations"][1].update(iscrowd="0"),
        "annotation number 1 (id 2): iscrowd must be 0 or 1, found '0'",
    ),
    "ignore as text": (lambda c: c["annotations"][1].update(ignore="no"), "ignore must be 0 or 1, found 'no'"),
    "another order": (lambda c: c["categories"].reverse(), "label 0 is 'dog' by the order of its categories, expected"),
    "two swapped": (
        lambda c: c["categories"].insert(1, c["categories"].pop(2)),
        "label 1 is 'dog' by the order of its categories",
    ),
    "a root of the same name": (
        lambda c: c["categories"].insert(0, {"id": 0, "name": "dog"}),
        "'dog' is the name of more than one category",
    ),
    "class missing": (lambda c: c["categories"].pop(1), "class 'car' of metainfo is not among its categories"),
    "category ids as text": (
        lambda c: [a.update(category_id=str(a["category_id"])) for a in c["annotations"]],
        "annotation number 0 (id 1): category_id is '1', the id that it refers to is 1",
    ),
    "image ids as text": (
        lambda c: [a.update(image_id=str(a["image_id"])) for a in c["annotations"]],
        "annotation number 0 (id 1): image_id is '7', the id that it refers to is 7",
    ),
    "categories' own ids as text": (
        lambda c: [a.update(id=str(a["id"])) for a in c["categories"]],
        "annotation number 0 (id 1): category_id is 1, the id that it refers to is '1'",
    ),
    "category ids of two types": (lambda c: c["categories"][0].update(id="one"), "some category ids are numbers and"),
    "category twice": (lambda c: c["categories"][1].update(id=1), "category id 1 occurs more than once"),
    "category name a list": (lambda c: c["categories"][1].update(name=["car"]), "(id 2): name must be text"),
    "category id null": (lambda c: c["categories"][1].update(id=None), "category number 1: id must be a whole number"),
    "image id beyond int64": (lambda c: c["images"][1].update(id=2**70), "image number 1 (id 1180591620717411303424)"),
    "image id as text": (lambda c: c["images"][1].update(id="8"), "image number 1 (id '8'): id must be a whole"),
    "width zero": (lambda c: c["images"][0].update(width=0), "width must be a whole number from 1"),
    "width as a float": (lambda c: c["images"][0].update(width=64.5), "width must be a whole number"),
    "file name a number": (lambda c: c["images"][0].update(file_name=3), "file_name must be text, found 3"),
    "image twice": (lambda c: c["images"][1].update(id=7), "image id 7 occurs more than once"),
    "box of three": (lambda c: c["annotations"][2].update(bbox=[1, 2, 3]), "annotation number 2 (id 3): bbox must be"),
    "box not finite": (
        lambda c: c["annotations"][2].update(bbox=[1, 2, float("nan"), 3]),
        "annotation number 2 (id 3): bbox must be",
    ),
    "box beyond a float": (lambda c: c["annotations"][2].update(bbox=[1, 2, 10**400, 3]), "bbox must be four finite"),
    "box of text": (lambda c: c["annotations"][2].update(bbox=["1", 2, 3, 4]), "bbox must be four finite numbers"),
    "box null": (lambda c: c["annotations"][2].update(bbox=None), "bbox must be four finite numbers"),
    "area null": (lambda c: c["annotations"][1].update(area=None), "annotation number 1 (id 2): area must be a finite"),
    "no annotation id": (lambda c: c["annotations"][1].pop("id"), "annotation number 1 has no 'id'"),
    "annotation id twice": (lambda c: c["annotations"][1].update(id=1), "annotation id 1 occurs more than once"),
    "image_id a list": (lambda c: c["annotations"][1].update(image_id=[7]), "image_id must be a whole number"),
    "an annotation that is no object": (lambda c: c["annotations"].append(7), "annotation number 4 has no 'id'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_mmdet_would_take_wrongly_is_refused(name: str, tmp_path: Path) -> None:
    change, words = WRONG[name]
    with pytest.raises(DataError) as refused:
        checked(tmp_path, change)
    line = str(refused.value)
    assert words in line and line.startswith(f"{tmp_path / 'instances.json'}: ") and "\n" not in line


def test_crowd_flags_are_needed_where_map_is_measured(tmp_path: Path) -> None:
    checked(tmp_path, lambda c: c["annotations"][0].pop("iscrowd"))
    with pytest.raises(DataError, match="annotation number 0 has no 'iscrowd'"):
        checked(tmp_path, lambda c: c["annotations"][0].pop("iscrowd"), evaluated=True)
