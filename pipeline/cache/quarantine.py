"""The images that a pass leaves out because they cannot be read: quarantine.json, copied into the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.cache.canonical import write_json
from pipeline.cache.schema import QUARANTINE, read_fields
from pipeline.cache.shard_plan import ShardPlan
from pipeline.storage.place import Place

FILE = "quarantine.json"


@dataclass(frozen=True)
class Quarantine:
    """The images of which a pass contains no view.

    reasons: the error that reading the image raised, by image id.
    """

    reasons: Mapping[int, str]

    @classmethod
    def load(cls, folder: Place) -> Quarantine:
        """Read the quarantine.json of a pass; empty if there is none. Raise CorruptCache."""
        path = folder / FILE
        return cls(dict(read_fields(path, QUARANTINE)["images"]) if path.exists() else {})

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any]) -> Quarantine:
        """Read the copy in the manifest of a complete pass."""
        return cls(dict(manifest["quarantine"]))

    @property
    def images(self) -> set[int]:
        """Ids of the images that are left out."""
        return set(self.reasons)

    @property
    def rows(self) -> list[list[Any]]:
        """[[image id, reason], ...] as written to disk, sorted by image id."""
        return [[image, reason] for image, reason in sorted(self.reasons.items())]

    def apply(self, shards: list[ShardPlan]) -> list[ShardPlan]:
        """Return the shard plans of the pass without the images that are left out."""
        return [shard.without(self.images) for shard in shards]

    def save(self, folder: Place) -> None:
        """Write quarantine.json into the folder of a pass."""
        write_json(folder / FILE, {"images": self.rows})
