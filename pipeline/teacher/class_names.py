"""Compare the class names of a checkpoint with those of the data set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.errors import TeacherError


def classes_of(meta: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the class names of a checkpoint of mmdet 3 (dataset_meta) or mmdet 1 and 2 (CLASSES); None without any."""
    nested = meta.get("dataset_meta")
    lower = {str(k).lower(): v for k, v in nested.items()} if isinstance(nested, dict) else {}
    for found in (lower.get("classes"), meta.get("CLASSES"), meta.get("classes")):
        names = found
        if isinstance(found, dict) and list(found) == list(range(len(found))):
            names = list(found.values())
        if isinstance(names, list | tuple) and names:
            return tuple(map(str, names))
    return None


def same_name(one: str, other: str) -> bool:
    """Compare two class names up to case, spaces, hyphens and underscores: mmdet writes traffic_light, COCO a space."""
    return _plain(one) == _plain(other)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def require_classes(meta: dict[str, Any], classes: tuple[str, ...], path: Path, check: str) -> None:
    """Raise TeacherError where the checkpoint was trained on other classes. check: teacher.class_names."""
    trained_on = classes_of(meta)
    if trained_on is None:
        return
    if len(trained_on) != len(classes):
        raise TeacherError(
            f"{path}: trained on {len(trained_on)} classes {trained_on[:3]}..., the dataset has {len(classes)} "
            f"{classes[:3]}...; use the same classes in the same label order"
        )
    differing = [n for n, (one, other) in enumerate(zip(trained_on, classes)) if not same_name(one, other)]
    if differing and check == "same":
        n = differing[0]
        raise TeacherError(
            f"{path}: {len(differing)} of {len(classes)} class names differ: label {n} is {trained_on[n]!r:.60} in the "
            f"checkpoint and {classes[n]!r} in the dataset; use the same label order, or set "
            "teacher.class_names='any' if only the spelling differs"
        )
