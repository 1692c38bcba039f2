"""The protocol of one version of the shard format. Version 1 is in version1.py, version 2 in version2.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pipeline.cache.arrays import ArraySpec
from pipeline.cache.items import Item, Limits
from pipeline.records import LevelShapes

Chunks = Mapping[str, memoryview]  # the encoded arrays of one sample, by name
Arrays = dict[str, np.ndarray]
View = tuple[int, int]  # image id, view


class SampleCodec(Protocol):
    """The part of a codec that the format needs."""

    def items(self) -> list[Item]: ...
    def specs(self, levels: Sequence[LevelShapes], samples: Sequence[Arrays] = ()) -> list[ArraySpec]: ...
    def size_limits(self, levels: LevelShapes) -> dict[str, Limits]: ...
    def read_sample(self, sample: Arrays, levels: LevelShapes) -> Arrays: ...


class ShardHead(Protocol):
    """The head of one shard, parsed and checked. Its methods raise CorruptCache."""

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the root group."""

    def levels(self, index: int) -> LevelShapes:
        """Return the FPN grids of a sample."""

    def members(self, index: int) -> list[str]:
        """Return the names of a sample's tar members, which are zarr keys."""

    def chunks(self, members: Sequence[memoryview]) -> Chunks:
        """Return the encoded arrays of a sample from the contents of its tar members."""

    def record(self, index: int, chunks: Chunks) -> Arrays:
        """Return the arrays `record` and `thumbnail` of a sample."""

    def decode(self, index: int, chunks: Chunks, codec: SampleCodec | None) -> Arrays:
        """Decode the codec's arrays of a sample. With `codec`, each has the sample's own length, and is checked."""


class ShardFormat(Protocol):
    """One version of the format of shards and sidecars, and of the digest of a cache's content."""

    @property
    def version(self) -> int: ...

    @property
    def listed(self) -> tuple[str, ...]:
        """Files of a pass that its manifest lists besides its shards, where they exist."""

    def parse_head(self, data: bytes, samples: int) -> ShardHead:
        """Parse and check the head of a shard of `samples` samples. Raise CorruptCache where it is invalid."""

    def encode_alone(self, codec: SampleCodec, levels: LevelShapes, sample: Arrays) -> dict[str, bytes]:
        """Encode the codec's arrays of a sample that is alone in its shard. Its sizes are those of a calibration."""

    def calibration_views(self, planned: Mapping[str, int], read: Mapping[str, Iterable[View]]) -> dict[str, Any]:
        """Return what `measured` of codec.json says about the views of a calibration.

        planned: the number of views by part. read: those that were readable.
        """

    def covers(self, name: str) -> bool:
        """Return whether the content digest covers a file of a cache, by its name in the cache."""

    def identity(self, plan: str, codec: str, gate: Callable[[], str]) -> dict[str, str]:
        """Return what the content digest covers besides the passes. `gate`: returns the digest of gate.json."""

    def pass_content(self, manifest: dict[str, Any]) -> Any:
        """Return what the content digest covers of a complete pass."""
