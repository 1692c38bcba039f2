"""Read a COCO annotation file: its JSON, without masks where nobody needs them. Needs no mmdet."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import DataError


def require_file(path: Path) -> None:
    """Raise DataError where an annotation file is missing."""
    if not path.is_file():
        raise DataError(f"{path}: annotation file not found; set data_root and ann_file")


def read_coco(path: Path, masks: bool = True) -> tuple[dict[str, Any], str]:
    """Return an annotation file as JSON, and its sha256. Without `masks`, `segmentation` is dropped while it is parsed.

    Raise DataError: missing, not JSON, not COCO.
    """
    require_file(path)
    try:
        raw = path.read_bytes()
        sha256 = hashlib.sha256(raw).hexdigest()
        text = raw.decode()
        del raw
        with collector_paused():
            content = json.loads(text, object_hook=None if masks else drop_mask)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file: {error}") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise DataError(f"{path}: not a COCO annotation file: no list {part!r} in it")
    return content, sha256


def drop_mask(row: dict[str, Any]) -> dict[str, Any]:
    """Drop `segmentation` from a JSON object, in place. Return the object."""
    row.pop("segmentation", None)
    return row


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's collector of cycles: it would scan millions of new objects again and again, and find none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
