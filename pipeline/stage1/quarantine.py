"""Find images that cannot be read, and record them in the quarantine of a pass."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.cache.quarantine import Quarantine
from pipeline.stage1.loader import ViewLoader
from pipeline.storage.lock import locked
from pipeline.storage.place import Place
from pipeline.text import one_line


def quarantine_broken_images(folder: Place, loader: ViewLoader) -> set[int]:
    """Read every view of a loader once, and add broken images to the quarantine. Return their ids."""
    broken = {image: one_line(str(error)) for image, error in loader.broken()}
    add_to_quarantine(folder, broken)
    return set(broken)


def add_to_quarantine(folder: Place, broken: Mapping[int, str]) -> None:
    """Add images with their reasons to quarantine.json in the folder of a pass."""
    if broken:
        with locked(folder, wait=True) as lock:  # other ranks add to the same file
            Quarantine({**Quarantine.load(folder).reasons, **broken}).save(lock.place)
