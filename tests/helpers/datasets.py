"""Small data sets: JPEG files and their COCO annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CLASSES = ("person", "car", "dog")
SIZES = [(96, 64), (64, 96), (120, 80), (96, 72), (64, 100), (128, 64)]  # (width, height)


def make_dataset(root: Path, images: int = 12, seed: int = 0) -> Path:
    """Write `images` JPEGs of coloured rectangles on noise, landscape and portrait, and their COCO annotations."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": n + 1, "name": name} for n, name in enumerate(CLASSES)]
    for n in range(images):
        width, height = SIZES[n % len(SIZES)]
        picture = rng.integers(0, 90, (height, width, 3), np.uint8)
        name = f"{n:03d}.jpg"
        content["images"].append({"id": 100 + n, "file_name": name, "width": width, "height": height})
        for k in range(2):
            w, h = (int(x) for x in rng.integers(16, 40, 2))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            label = (n + k) % len(CLASSES)
            picture[y : y + h, x : x + w, label] = 255
            box = {"id": len(content["annotations"]) + 1, "image_id": 100 + n, "category_id": label + 1}
            content["annotations"].append({**box, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
        assert cv2.imwrite(str(root / "images" / name), picture)
    (root / "annotations.json").write_text(json.dumps(content))
    return root
