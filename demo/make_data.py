"""Make the demo's detection data: synthetic scenes as COCO-format files.

    python demo/make_data.py --out work_dirs/demo/data --train 300 --val 100 --categories 16

Writes OUT/train/*.jpg, OUT/val/*.jpg and OUT/annotations/instances_{train,val}.json. The same arguments give the same
bytes with any number of workers. A larger number of images only adds images.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.coco_names import COCO_IDS, category_set
from demo.scenes import render

JPEG_QUALITY = 92
MAX_IMAGES = 1_000_000  # largest number of images in a split, so ids of train and val never overlap
MAX_OBJECTS = 100  # largest number of objects in an image, so an annotation's id depends only on its image
FIRST_ID = {"train": 1 * MAX_IMAGES, "val": 2 * MAX_IMAGES}
INFO = {
    "description": "Synthetic scenes of emoji cut-outs under the category names of COCO",
    "url": "",
    "version": "1.0",
    "year": 2025,
    "contributor": "FRS teacher cache demo",
    "date_created": "2025/01/01",
}
LICENSES = [{"id": 1, "name": "MIT (Fluent Emoji) and Apache-2.0 (Noto Emoji), see demo/atlas/README.md", "url": ""}]


def write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename, so a killed run leaves no truncated file."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def make_image(
    index: int, *, out: Path, split: str, seed: int, categories: tuple[str, ...], sides: tuple[int, int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Render and write one image. Return its COCO image record and annotation records."""
    scene = render(seed, split, index, categories, sides=sides)
    if len(scene.boxes) >= MAX_OBJECTS:
        raise ValueError(f"{split} image {index}: expected fewer than {MAX_OBJECTS} objects")
    height, width = scene.image.shape[:2]
    image_id = FIRST_ID[split] + index
    name = f"{image_id:012d}.jpg"
    encoded = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    write_atomically(out / split / name, encoded.tobytes())
    annotations = [
        {
            "id": image_id * MAX_OBJECTS + k + 1,  # pycocotools interprets an annotation id of 0 as "no match"
            "image_id": image_id,
            "category_id": COCO_IDS[categories[label]],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
            "iscrowd": 0,
        }
        for k, ((x1, y1, x2, y2), label, area) in enumerate(
            zip(scene.boxes.tolist(), scene.labels.tolist(), scene.areas.tolist())
        )
    ]
    return dict(id=image_id, file_name=name, width=width, height=height, license=1), annotations


def _make_images(count: int, workers: int, make: functools.partial) -> Iterator[tuple[dict, list[dict]]]:
    """Yield the records of images 0..count-1 in order, made by ``workers`` processes (1: in this process)."""
    if workers <= 1:
        yield from map(make, range(count))
        return
    # Spawned, because a fork of a process with OpenCV threads may wait for them forever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.map(make, range(count), chunksize=16)


def make_split(
    out: Path,
    split: str,
    count: int,
    *,
    seed: int = 520,
    categories: tuple[str, ...] = category_set(16),
    sides: tuple[int, int] = (192, 384),
    workers: int = 1,
) -> Path:
    """Write one split, and its annotation file last. If the annotation file exists, all images exist.

    Returns:
        The annotation file.

    Raises:
        ValueError: if ``count`` is negative or larger than MAX_IMAGES.
    """
    if not 0 <= count <= MAX_IMAGES:
        raise ValueError(f"{split}: expected 0 to {MAX_IMAGES} images, got {count}")
    for folder in (out / split, out / "annotations"):
        folder.mkdir(parents=True, exist_ok=True)
    make = functools.partial(make_image, out=out, split=split, seed=seed, categories=categories, sides=sides)
    images, annotations = [], []
    for image, objects in _make_images(count, workers, make):
        images.append(image)
        annotations.extend(objects)
    named = [{"id": COCO_IDS[name], "name": name, "supercategory": "emoji"} for name in categories]
    record = dict(info=INFO, licenses=LICENSES, images=images, annotations=annotations, categories=named)
    path = out / "annotations" / f"instances_{split}.json"
    write_atomically(path, json.dumps(record, separators=(",", ":")).encode())
    return path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--train", type=int, default=300, help="images of the train split")
    parser.add_argument("--val", type=int, default=100, help="images of the val split")
    parser.add_argument("--categories", type=int, choices=(16, 80), default=16)
    parser.add_argument("--seed", type=int, default=520)
    parser.add_argument("--size", type=int, nargs=2, default=(192, 384), metavar=("MIN", "MAX"), help="sides")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(argv)
    if not 32 <= args.size[0] <= args.size[1]:
        parser.error(f"--size: expected 32 <= MIN <= MAX, got {args.size[0]} {args.size[1]}")
    categories = category_set(args.categories)
    for split, count in (("train", args.train), ("val", args.val)):
        path = make_split(
            args.out,
            split,
            count,
            seed=args.seed,
            categories=categories,
            sides=tuple(args.size),
            workers=args.workers,
        )
        print(f"{count} {split} images, {path}")


if __name__ == "__main__":
    main()
