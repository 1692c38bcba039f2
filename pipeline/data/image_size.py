"""Explain why an image has another size than the annotation file says."""

from __future__ import annotations

from typing import Any

from PIL import Image

ORIENTATION, TURNED = 0x112, (5, 6, 7, 8)  # EXIF tag, and its values that exchange width and height
RAW = "color_type='color_ignore_orientation'"


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
