"""A small data set for any config of mmdet's zoo: images, boxes, polygons and segmentation maps, in COCO's format."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.cache.canonical import digest
from pipeline.mmdet_compat.registry import DATASETS, type_name

SIZES = ((640, 480), (480, 640), (500, 375), (333, 500))  # (width, height)
BOXES = 4  # for each image
STUFF = 53  # classes of panoptic configs beside the 80 things


def leaves(dataset: Any) -> list[dict[str, Any]]:
    """Return the data sets inside any wrappers."""
    if not isinstance(dataset, dict):
        return []
    inner = [dataset["dataset"]] if "dataset" in dataset else dataset.get("datasets", [])
    return [leaf for one in inner for leaf in leaves(one)] if inner else [dataset]


def point_at_small_data(dataset: Any, folder: Path) -> None:
    """Replace the files of a data set config, wrapped or not, by those of a small data set with the same classes."""
    for number, leaf in enumerate(leaves(dataset)):
        names = classes_of(leaf)
        leaf["ann_file"] = str(annotation_file(folder, names, 1 + number * 100, is_coco(leaf)))
        leaf["data_root"] = ""
        leaf.pop("indices", None)
        prefix = leaf.get("data_prefix") or {"img": ""}
        leaf["data_prefix"] = {key: str(folder / ("maps" if "seg" in key else "images")) for key in prefix}


def is_coco(leaf: dict[str, Any]) -> bool:
    """Whether a data set reads COCO's JSON. The annotation file of another one is a list of names."""
    kind = DATASETS.get(type_name(leaf.get("type")))
    return kind is not None and issubclass(kind, DATASETS.get("CocoDataset"))


def classes_of(leaf: dict[str, Any]) -> tuple[str, ...]:
    """Return the class names that a data set config or its class sets; three names if there are none."""
    kind = DATASETS.get(type_name(leaf.get("type")))
    found = (leaf.get("metainfo") or {}).get("classes") or (getattr(kind, "METAINFO", None) or {}).get("classes")
    return tuple(found) if isinstance(found, list | tuple) and found else ("person", "car", "dog")


@lru_cache(None)
def images(folder: Path) -> tuple[str, ...]:
    """Write the images and their segmentation maps. Return the file names."""
    rng = np.random.default_rng(0)
    names = tuple(f"{n:012d}.jpg" for n in range(len(SIZES)))
    for part in ("images", "maps"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, (width, height) in zip(names, SIZES):
        picture = rng.integers(0, 255, (height, width, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / name), cv2.GaussianBlur(picture, (9, 9), 3))
        stripes = np.arange(width, dtype=np.uint8)[None] // 40 % STUFF
        cv2.imwrite(str(folder / "maps" / name.replace("jpg", "png")), np.repeat(stripes, height, 0))
    return names


@lru_cache(None)
def annotation_file(folder: Path, names: tuple[str, ...], first: int, coco: bool = True) -> Path:
    """Write an annotation file with these classes, whose image ids start at `first`. Return its path."""
    path = folder / f"{digest(list(names))[:16]}-{first}.{'json' if coco else 'txt'}"
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": n + 1, "name": name} for n, name in enumerate(names)]
    for number, (file, (width, height)) in enumerate(zip(images(folder), SIZES)):
        image = {"id": first + number, "file_name": file, "width": width, "height": height}
        lvis = {"neg_category_ids": [], "not_exhaustive_category_ids": [], "coco_url": f"http://x/train2017/{file}"}
        content["images"].append({**image, **lvis})
        for n in range(BOXES):
            w, h = width // (3 + n), height // (3 + n)
            x, y = n * width // 5, n * height // 5
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + first * 100,
                    "image_id": first + number,
                    "category_id": (n + number) % min(len(names), 5) + 1,
                    "bbox": [x, y, w, h],
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    path.write_text(json.dumps(content) if coco else "\n".join(images(folder)))
    return path
