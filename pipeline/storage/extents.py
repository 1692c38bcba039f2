"""The extents of a shard: contiguous ranges of whole tar members, each with a checksum of its bytes.

`image_id` and `view` identify the sample of an extent; they are -1 in head and tail. The fields, in this order, are the
columns of a sidecar.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

from google_crc32c import value as crc32c

HEX = re.compile("[0-9a-f]{64}")
Fetched = Mapping[int, bytes]  # unchecked bytes of extents, by offset


class Extent(Protocol):
    """`size` bytes at `offset` of a shard. Hashable, and made of the columns in their order."""

    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def image_id(self) -> int: ...
    @property
    def view(self) -> int: ...

    @classmethod
    def of(cls, offset: int, data: bytes, image_id: int = -1, view: int = -1) -> Self:
        """Return the extent of `data` at `offset`."""

    def matches(self, data: bytes) -> bool:
        """Return whether `data` has the size and the checksum of this extent."""

    def is_valid(self) -> bool:
        """Return whether every field has a value that `of` can give."""


@dataclass(frozen=True)
class Crc32cExtent:
    """An extent of format version 1."""

    offset: int
    size: int
    crc32c: int
    image_id: int = -1
    view: int = -1

    @classmethod
    def of(cls, offset: int, data: bytes, image_id: int = -1, view: int = -1) -> Self:
        return cls(offset, len(data), crc32c(data), image_id, view)

    def matches(self, data: bytes) -> bool:
        return len(data) == self.size and crc32c(data) == self.crc32c

    def is_valid(self) -> bool:
        return _whole(self, "crc32c") and type(self.crc32c) is int and 0 <= self.crc32c < 1 << 32


@dataclass(frozen=True)
class Sha256Extent:
    """An extent of format version 2. Nobody can make other bytes with the same checksum."""

    offset: int
    size: int
    sha256: str
    image_id: int = -1
    view: int = -1

    @classmethod
    def of(cls, offset: int, data: bytes, image_id: int = -1, view: int = -1) -> Self:
        return cls(offset, len(data), hashlib.sha256(data).hexdigest(), image_id, view)

    def matches(self, data: bytes) -> bool:
        return len(data) == self.size and hashlib.sha256(data).hexdigest() == self.sha256

    def is_valid(self) -> bool:
        return _whole(self, "sha256") and isinstance(self.sha256, str) and HEX.fullmatch(self.sha256) is not None


def columns(extent: Any) -> list[str]:
    """Return the names of the fields of an extent, or of its class."""
    return [one.name for one in fields(extent)]


def _whole(extent: Any, checksum: str) -> bool:
    return all(type(value) is int for name, value in vars(extent).items() if name != checksum)
