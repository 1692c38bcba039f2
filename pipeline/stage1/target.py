"""What stage 1 knows of a shard before it computes the first sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

from pipeline.cache.shard_plan import ShardPlan
from pipeline.cache.sidecar import Sidecar
from pipeline.codecs.base import Codec
from pipeline.records import LevelShapes
from pipeline.stage1.encode import EncodedViews
from pipeline.storage.place import Place


@dataclass(frozen=True)
class ShardTarget:
    """The path of a shard, and what its head says.

    version: of the format. identity: `pass`, `shard`, `plan` and `recipe` of the head's attributes. levels: FPN grids
    of each planned sample.
    """

    path: Place
    version: int
    identity: dict[str, Any]
    codec: Codec
    codec_digest: str
    plan: ShardPlan
    levels: list[LevelShapes]

    @property
    def depth(self) -> int:
        """Number of FPN levels; 0 if all views are in quarantine."""
        return len(self.levels[0]) if self.levels else 0

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the shard's head, without those that follow from its arrays."""
        return {**self.identity, "codec_digest": self.codec_digest, "codec": self.codec.settings}


class NewShard(Protocol):
    """A shard that is being made. A context manager: an error inside its block removes what is on disk."""

    @property
    def background(self) -> bool:
        """Whether `commit` may run on another thread, after the block."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...

    def add(self, views: EncodedViews) -> None:
        """Add a batch, in the order of the shard plan."""

    def commit(self) -> Sidecar:
        """Write the shard and its sidecar. Return the sidecar."""
