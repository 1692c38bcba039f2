"""A data set of COCO's size for the start-up benchmark: a real annotation file, and one small image for each size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.scenes import ALL_CATEGORIES

IMAGES, BOXES = 118_287, 7.0  # images of train2017, and annotations of an image on average
LARGEST_IMAGE_ID, LARGEST_BOX_ID = 581_929, 2_232_119  # ids have gaps, as in train2017
EMPTY, CROWDS = 0.009, 0.011  # shares of images without annotations, and of annotations that are crowds
SIDES = np.arange(320, 641, 8)  # of the shorter sides; the longer one is 640, as in COCO
LICENCE = "http://farm1.staticflickr.com/{0}/{1}_{2:010x}_z.jpg"


def write_data(folder: Path, images: int = IMAGES, seed: int = 0) -> Path:
    """Write the annotation file and the images that it names. Return its path. An existing file is kept."""
    path = folder / "annotations.json"
    if path.exists():
        return path
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(LARGEST_IMAGE_ID, images, replace=False)) + 1
    rng.shuffle(ids)  # the file's order is not that of the ids
    short = rng.choice(SIDES, images)
    short[rng.random(images) < 0.4] = 480
    upright = rng.random(images) < 0.25
    sizes = [(int(s), 640) if up else (640, int(s)) for s, up in zip(short, upright)]
    for width, height in set(sizes):
        picture = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        assert cv2.imwrite(str(folder / "images" / image_name(width, height)), cv2.resize(picture, (width, height)))
    temporary = path.with_suffix(".part")
    with open(temporary, "w") as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        write_rows(file, image_rows(ids, sizes, rng))
        file.write('], "annotations": [')
        write_rows(file, box_rows(ids, sizes, rng))
        categories = [{"supercategory": "thing", "id": c, "name": name} for c, name in category_ids().items()]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    temporary.rename(path)
    return path


def image_name(width: int, height: int) -> str:
    """Return the file that shows all images of a size. The name is as long as those of COCO."""
    return f"w{width:05d}h{height:05d}.jpg"


def category_ids() -> dict[int, str]:
    """Return COCO's 80 class names by ids from 1 to 90 with gaps."""
    return {1 + n + n // 8: name for n, name in enumerate(ALL_CATEGORIES)}


def write_rows(file: Any, rows: Iterator[str]) -> None:
    """Write rows with commas between them."""
    for number, row in enumerate(rows):
        file.write(row if number == 0 else f", {row}")


def image_rows(ids: np.ndarray, sizes: list[tuple[int, int]], rng: np.random.Generator) -> Iterator[str]:
    for image, (width, height), number in zip(ids.tolist(), sizes, rng.integers(0, 2**40, len(ids)).tolist()):
        url = LICENCE.format(number % 9999, number % 10**10, number)
        yield (
            f'{{"license": 3, "file_name": "{image_name(width, height)}", "coco_url": '
            f'"http://images.cocodataset.org/train2017/{image:012d}.jpg", "height": {height}, "width": {width}, '
            f'"date_captured": "2013-11-14 17:02:52", "flickr_url": "{url}", "id": {image}}}'
        )


def box_rows(ids: np.ndarray, sizes: list[tuple[int, int]], rng: np.random.Generator) -> Iterator[str]:
    """Yield annotations in random order of images: boxes, and polygons of 6 to 39 points on an ellipse in the box."""
    counts = rng.geometric(1 / BOXES, len(ids))
    counts[rng.random(len(ids)) < EMPTY] = 0
    owners = rng.permutation(np.repeat(np.arange(len(ids)), counts))
    numbers = rng.choice(LARGEST_BOX_ID, len(owners), replace=False) + 1
    labels = rng.choice(list(category_ids()), len(owners))
    crowds, points = rng.random(len(owners)) < CROWDS, rng.integers(6, 40, len(owners))
    parts = rng.random((len(owners), 4))
    for owner, number, label, crowd, count, part in zip(owners, numbers, labels, crowds, points, parts):
        width, height = sizes[owner]
        w, h = 4 + (width - 8) * part[2] ** 2, 4 + (height - 8) * part[3] ** 2
        x, y = part[0] * (width - w), part[1] * (height - h)
        angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
        outline = np.stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))], 1).round(2)
        shape = f"[{outline.ravel().tolist()}]"
        if crowd:
            runs = rng.integers(1, 900, 2 * count).tolist()
            shape = f'{{"counts": {runs}, "size": [{height}, {width}]}}'
        yield (
            f'{{"segmentation": {shape}, "area": {w * h * 0.785:.4f}, "iscrowd": {int(crowd)}, "image_id": '
            f'{ids[owner]}, "bbox": [{x:.2f}, {y:.2f}, {w:.2f}, {h:.2f}], "category_id": {label}, "id": {number}}}'
        )
