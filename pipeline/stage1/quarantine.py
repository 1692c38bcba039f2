"""Images that cannot be read and are left out, where the config allows it."""

from __future__ import annotations

from typing import Any

from pipeline.cache.canonical import write_json
from pipeline.cache.schema import QUARANTINE, read_fields
from pipeline.stage1.loader import ViewLoader
from pipeline.storage.lock import locked
from pipeline.storage.place import Place


class Quarantine:
    """Images of a pass that cannot be read, kept in quarantine.json; only where the config asks for it."""

    def __init__(self, folder: Place) -> None:
        self._path = folder / "quarantine.json"
        self.images: dict[int, str] = {}
        if self._path.exists():
            self.images = {image: reason for image, reason in read_fields(self._path, QUARANTINE)["images"]}

    def search(self, loader: ViewLoader) -> set[int]:
        """Read every view once; remember those that fail."""
        found = {image: str(error) for image, error in loader.broken()}
        if found:
            with locked(self._path.parent, wait=True) as lock:  # other ranks find some too
                self.images |= Quarantine(lock.place).images | found
                write_json(lock.place / self._path.name, {"images": self.rows()})
        return set(self.images)

    def rows(self) -> list[list[Any]]:
        return [[image, reason] for image, reason in sorted(self.images.items())]
