"""Check that a replayed view is the one that the teacher saw, for every sample."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import numpy as np

from pipeline.errors import ReplayMismatch
from pipeline.records import FLIPS, ViewRecord

LIBRARIES = ("opencv-python-headless", "opencv-python", "numpy", "pillow", "onedl-mmcv", "mmcv", "torch")


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide a view's pixels."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_replay(
    cached: ViewRecord, replayed: ViewRecord, mode: str, tolerance: float, made_with: dict[str, str]
) -> None:
    """Raise ReplayMismatch, naming image, view and field, unless the two records agree.

    'exact' compares geometry, boxes and the crc32c of all pixels; 'close' compares geometry and boxes, and the mean
    absolute difference of the thumbnails with `tolerance` (grey levels of 255).
    """
    names = ["image_id", "view", "ori_shape", "shape", "pad_shape", "flip", "boxes"]
    names += ["pixels"] if mode == "exact" else []
    for name in names:
        expected, got = getattr(cached, name), getattr(replayed, name)
        if expected != got:
            if name == "flip":
                expected, got = FLIPS[expected], FLIPS[got]
            here = library_versions()
            drift = [f"{k} {v} -> {here.get(k)}" for k, v in sorted(made_with.items()) if v != here.get(k)]
            raise ReplayMismatch(
                f"image {cached.image_id}, view {cached.view}: {name} differs from what the teacher saw: expected "
                f"{expected}, got {got}; libraries {', '.join(drift) or 'are the same, so the image file changed'}"
            )
    if mode == "close":
        off = float(np.abs(cached.thumbnail.astype(float) - replayed.thumbnail.astype(float)).mean())
        if off > tolerance:
            raise ReplayMismatch(
                f"image {cached.image_id}, view {cached.view}: thumbnails differ by {off:.1f} grey levels, allowed "
                f"{tolerance:.1f}"
            )
