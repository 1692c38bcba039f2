"""Find images that cannot be read, and record them in the quarantine of a pass."""

from __future__ import annotations

from pipeline.cache.quarantine import Quarantine
from pipeline.stage1.loader import ViewLoader
from pipeline.storage.lock import locked
from pipeline.storage.place import Place
from pipeline.text import one_line


def quarantine_broken_images(folder: Place, loader: ViewLoader) -> set[int]:
    """Read every view of a loader once, and add broken images to quarantine.json in the folder of a pass.

    Return the ids of the broken images.
    """
    broken = {image: one_line(str(error)) for image, error in loader.broken()}
    if broken:
        with locked(folder, wait=True) as lock:  # other ranks add to the same file
            Quarantine({**Quarantine.load(folder).reasons, **broken}).save(lock.place)
    return set(broken)
