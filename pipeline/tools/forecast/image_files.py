"""Estimate the bytes of the image files that a cache stores (cache.images=True)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from pipeline.cache.shard_plan import mix
from pipeline.cache.tar import BLOCK
from pipeline.data.images import Images
from pipeline.errors import ConfigError
from pipeline.tools.forecast.estimate import interval

SAMPLE = 4000  # image files to look at; the size of COCO's is then within 2%


def add_image_files(found: dict[str, Any], images: Images, seed: int) -> dict[str, Any]:
    """Return the sizes of a forecast with those of the image files: each once, in whole tar blocks after a header."""
    chosen = sorted(images.ids, key=lambda image: mix(seed, -3, image))[:SAMPLE]
    sizes = [size for image in chosen if (size := _file_size(images.info(image)["img_path"])) is not None]
    if not sizes:
        raise ConfigError(f"cache.images: none of {len(chosen)} images is a file on this machine; check data_root")
    blocks = np.array([BLOCK + -(-size // BLOCK) * BLOCK for size in sizes], float)
    count = len(images)
    row = [round(value) for value in interval(blocks, np.ones(len(blocks)), count, count)]
    return {
        "bytes": found["bytes"] + row[0],
        "bytes_low": found["bytes_low"] + row[1],
        "bytes_high": found["bytes_high"] + row[2],
        "bytes_by_tensor": {**found["bytes_by_tensor"], "images": row},
        "stored_images": {"images": count, "bytes": row[0]},
    }


def _file_size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
