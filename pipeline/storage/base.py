"""Data types that every storage backend shares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Extent:
    """`size` bytes at `offset` of a shard. `image_id` and `view` are those of a sample, -1 in head and tail."""

    offset: int
    size: int
    crc32c: int
    image_id: int = -1
    view: int = -1
