"""Verify that each replayed view equals the teacher's view."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import numpy as np

from pipeline.errors import ReplayMismatch
from pipeline.records import FLIPS, ViewRecord

LIBRARIES = (
    *("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    *("onedl-mmcv", "mmcv", "mmcv-lite", "numpy", "pillow", "torch"),
)


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that affect a view's pixels."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_replay(
    cached: ViewRecord, replayed: ViewRecord, mode: str, tolerance: float, cached_versions: dict[str, str]
) -> None:
    """Raise ReplayMismatch that names image, view and field where the two records differ.

    Both modes compare geometry and boxes. 'exact' also compares the crc32c of all pixels. 'close' compares the mean
    absolute difference of the thumbnails with `tolerance`, in grey levels of 255.
    """
    names = ["image_id", "view", "ori_shape", "shape", "pad_shape", "flip", "boxes"]
    names += ["pixels"] if mode == "exact" else []
    for name in names:
        expected, got = getattr(cached, name), getattr(replayed, name)
        if expected != got:
            if name == "flip":
                expected, got = FLIPS[expected], FLIPS[got]
            here = library_versions()
            changed = [f"{k} {v} -> {here.get(k)}" for k, v in sorted(cached_versions.items()) if v != here.get(k)]
            cause = (
                f"these libraries changed: {', '.join(changed)}; install the versions that made the cache"
                if changed
                else "no library changed, so the image file did; restore it or make a new cache"
            )
            raise ReplayMismatch(
                f"image {cached.image_id}, view {cached.view}: {name} differs from the teacher's view: expected "
                f"{expected}, got {got}; {cause}"
            )
    if mode == "close":
        difference = float(np.abs(cached.thumbnail.astype(float) - replayed.thumbnail.astype(float)).mean())
        if difference > tolerance:
            raise ReplayMismatch(
                f"image {cached.image_id}, view {cached.view}: thumbnails differ by {difference:.1f} grey levels, "
                f"expected at most views.tolerance {tolerance:.1f}; restore the image file or make a new cache"
            )
