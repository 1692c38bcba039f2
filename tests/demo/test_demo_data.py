"""The demo's data: a pure function of its arguments, and COCO format that COCO's own tools accept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from demo.coco_names import ALL_CATEGORIES, COCO_IDS, DEMO_CATEGORIES, category_set
from demo.cutouts import ATLAS, DISTRACTOR, load_atlas
from demo.make_data import FIRST_ID, main, make_split
from demo.scenes import MIN_SIDE, Drawn, paste, render, visible


def hashes(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file below ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 train and 12 val images by the command line, two workers."""
    out = tmp_path_factory.mktemp("data")
    main(["--out", str(out), "--train", "24", "--val", "12", "--workers", "2"])
    return out


def records(data: Path, split: str) -> dict:
    return json.loads((data / "annotations" / f"instances_{split}.json").read_text())


def test_same_arguments_same_bytes_on_any_number_of_workers(data: Path, tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--train", "24", "--val", "12", "--workers", "1"])
    assert hashes(tmp_path) == hashes(data)
    assert len(hashes(data)) == 24 + 12 + 2


def test_more_images_only_add(data: Path, tmp_path: Path) -> None:
    make_split(tmp_path, "train", 5)
    few = {name: value for name, value in hashes(tmp_path).items() if name.endswith(".jpg")}
    assert len(few) == 5
    assert few.items() <= hashes(data).items()
    more, fewer = records(data, "train"), records(tmp_path, "train")
    assert more["images"][:5] == fewer["images"]
    assert more["annotations"][: len(fewer["annotations"])] == fewer["annotations"]


def test_seed_and_split_change_the_scene() -> None:
    images = [render(seed, split, 3).image for seed, split in ((1, "train"), (2, "train"), (1, "val"))]
    digests = {hashlib.sha256(image.tobytes()).digest() for image in images}
    assert len(digests) == 3


def test_train_and_val_share_nothing(data: Path) -> None:
    files = hashes(data)
    train = {value for name, value in files.items() if name.startswith("train")}
    val = {value for name, value in files.items() if name.startswith("val")}
    assert len(train) == 24 and len(val) == 12 and not train & val
    ids = [{image["id"] for image in records(data, split)["images"]} for split in ("train", "val")]
    assert not ids[0] & ids[1]
    assert min(ids[1]) == FIRST_ID["val"]


def test_pycocotools_loads_it(data: Path) -> None:
    from pycocotools.coco import COCO

    coco = COCO(str(data / "annotations/instances_train.json"))
    assert len(coco.getImgIds()) == 24
    assert len(set(coco.getAnnIds())) == len(coco.dataset["annotations"]) > 24
    assert {c["name"]: c["id"] for c in coco.loadCats(coco.getCatIds())} == {
        name: COCO_IDS[name] for name in DEMO_CATEGORIES
    }
    assert coco.getImgIds(catIds=[COCO_IDS["person"]])


@pytest.mark.parametrize("split", ["train", "val"])
def test_records_agree_with_the_images(data: Path, split: str) -> None:
    record = records(data, split)
    sizes = {}
    for image in record["images"]:
        pixels = cv2.imread(str(data / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        assert 192 <= min(pixels.shape[:2]) <= max(pixels.shape[:2]) <= 384
        sizes[image["id"]] = image["width"], image["height"]
    assert {width > height for width, height in sizes.values()} == {True, False}
    for annotation in record["annotations"]:
        width, height = sizes[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        assert min(w, h) >= MIN_SIDE
        assert 0 < annotation["area"] <= w * h
        assert annotation["iscrowd"] == 0
        assert annotation["category_id"] in {COCO_IDS[name] for name in DEMO_CATEGORIES}


def test_category_ids_are_coco_s() -> None:
    assert len(COCO_IDS) == 80 and sorted(COCO_IDS.values()) == list(COCO_IDS.values())
    known = dict(person=1, bicycle=2, toothbrush=90, clock=85, train=7, oven=79)
    assert known.items() <= COCO_IDS.items()
    absent = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert set(COCO_IDS.values()) == set(range(1, 91)) - absent
    with pytest.raises(ValueError, match="expected 16 or 80, got 20"):
        category_set(20)


def test_eighty_categories_on_request(tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--train", "40", "--val", "0", "--categories", "80", "--workers", "1"])
    record = records(tmp_path, "train")
    assert [c["id"] for c in record["categories"]] == list(COCO_IDS.values())
    assert len({a["category_id"] for a in record["annotations"]}) > 40
    assert records(tmp_path, "val")["images"] == []


def test_some_scenes_are_empty_and_objects_come_in_all_sizes() -> None:
    scenes = [render(520, "train", index, sides=(96, 160)) for index in range(250)]
    empty = sum(len(scene.boxes) == 0 for scene in scenes)
    assert 1 <= empty <= 25
    boxes = np.concatenate([scene.boxes for scene in scenes])
    share = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)) / 120
    assert (share < 0.15).mean() > 0.2 and (share > 0.3).mean() > 0.05
    assert np.bincount(np.concatenate([scene.labels for scene in scenes]), minlength=16).min() > 20


def test_boxes_are_tight_around_what_is_visible() -> None:
    image, owner = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.int16)
    square = np.full((20, 20, 4), 255, np.uint8)
    drawn = []
    # Cut by the border; almost covered; whole; almost outside.
    places = [(-5, 10), (30, 10), (30, 12), (56, 0)]
    for mark, (x, y) in enumerate(places, start=1):
        rows, columns, solid = paste(image, square, x, y)
        owner[rows, columns][solid] = mark
        drawn.append(Drawn(mark, mark, rows, columns, 400))
    boxes, labels, areas = visible(owner, drawn)
    assert boxes == [(0, 10, 15, 30), (30, 12, 50, 32)]
    assert labels == [1, 3]
    assert areas == [300, 400]


def test_the_atlas_covers_all_categories_with_premultiplied_cutouts() -> None:
    atlas = load_atlas()
    assert set(atlas) == {*ALL_CATEGORIES, DISTRACTOR}
    assert (ATLAS / "README.md").exists()
    for choices in atlas.values():
        for pyramid in choices:
            assert pyramid[0].dtype == np.uint8 and (pyramid[0][..., :3] <= pyramid[0][..., 3:]).all()
