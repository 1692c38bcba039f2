"""Check an image file before it is decoded, and explain why its size is not that of the annotation file."""

from __future__ import annotations

import os
import stat
import warnings
from typing import Any

from PIL import Image

from pipeline.budget import BUDGET
from pipeline.errors import DataError, brief

ORIENTATION, TURNED = 0x112, (5, 6, 7, 8)  # EXIF tag, and its values that exchange width and height
LARGER = 4  # an image of this many times the annotated pixels is not decoded
RAW = "color_type='color_ignore_orientation'"


def check_image_file(info: dict[str, Any], where: str) -> None:
    """Refuse an image before it is decoded. Raise DataError, which begins with `where`.

    A FIFO would block, a device could be endless, and a small file can declare an image that fills the memory. Links
    are followed. An image that pillow does not know, or that is not on this machine, is not checked.
    """
    path = info["img_path"]
    if "://" in path:
        return
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{where}: expected a regular file, found a folder, FIFO, device or socket")
        if found.st_size > BUDGET.image_bytes:
            raise DataError(f"{where}: expected at most {BUDGET.image_bytes >> 20} MiB, found {found.st_size >> 20}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                size = (image.height, image.width)
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: {brief(error)}; use an image of fewer pixels") from error
    except (OSError, ValueError, SyntaxError):  # missing or damaged: the decoder says so
        return
    if size[0] * size[1] > LARGER * info["height"] * info["width"]:
        raise DataError(f"{where}: {describe_wrong_size(info, size)}")


def describe_wrong_size(info: dict[str, Any], found: tuple[int, int]) -> str:
    """Describe a size (height, width) that differs from that of mmdet's data_info, and say what to do."""
    text = f"the annotation file says {info['width']}x{info['height']}, the image is {found[1]}x{found[0]}"
    turn, stored = read_orientation(info["img_path"])
    if turn not in TURNED or found != (info["width"], info["height"]):
        return f"{text}; correct width and height in the annotation file"
    if found == stored:
        return (
            f"{text} without its EXIF orientation {turn}, which LoadImageFromFile ignores; remove {RAW}, or correct "
            "width and height in the annotation file"
        )
    return (
        f"{text} with its EXIF orientation {turn}; if its boxes are for the pixels as stored, set {RAW} in "
        "LoadImageFromFile, otherwise correct width and height in the annotation file"
    )


def read_orientation(path: str) -> tuple[int | None, tuple[int, int] | None]:
    """Return the EXIF orientation of an image and its stored size (height, width); None where it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(ORIENTATION), (image.height, image.width)
    except Exception:  # a decoder may raise any exception, and the image may not be on this machine
        return None, None
