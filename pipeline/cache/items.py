"""The items of a sample: what a shard of version 2 stores of it, without zarr-python.

A sample is one chunk of the array `samples`: a little-endian uint32 number of items, then for each item its length as
uint32 and its bytes, then the crc32c of all bytes before it. Source: zarr's codecs `vlen-bytes` and `crc32c`. The bytes
equal zarr-python's; tests/cache/test_items.py checks both directions. An item is one array, little-endian in C order,
compressed with Blosc (zstd, byte shuffle) where the codec says so. An empty array has no bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import pack
from typing import Any

import numpy as np
from google_crc32c import value as crc32c
from numcodecs import Blosc

from pipeline.cache.arrays import SUPPORTED
from pipeline.errors import CodecError, CorruptCache

BLOSC_HEADER = 16  # bytes; 4-8 are the decoded size, 12-16 the encoded one
LARGEST = 2**31 - 1 - BLOSC_HEADER  # the limit of Blosc
Limits = tuple[int, int]  # least and most decoded bytes


@dataclass(frozen=True)
class Item:
    """One array of a sample: numpy dtype name, zstd level on Blosc's scale (None: not compressed), names of its axes.

    Each sample has its own length, without padding. An array of two axes has one row for each position of the FPN.
    """

    name: str
    dtype: str
    level: int | None
    dims: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the item as in the attribute `arrays` of a shard. The level is not needed to read it."""
        compression = None if self.level is None else "blosc"
        return {"name": self.name, "dtype": self.dtype, "compression": compression, "dims": list(self.dims)}


def item_from_json(value: dict[str, Any]) -> Item:
    """Return the item of an element of the attribute `arrays`. Raise ValueError where it is invalid."""
    item = Item(value["name"], value["dtype"], 1 if value["compression"] == "blosc" else None, tuple(value["dims"]))
    named = all(isinstance(name, str) and 0 < len(name) < 64 for name in (item.name, *item.dims))
    if not named or item.dtype not in SUPPORTED or len(item.dims) not in (1, 2) or item.to_json() != value:
        raise ValueError(f"invalid item {value!r:.60}")
    return item


def encode_item(item: Item, array: np.ndarray) -> bytes:
    """Encode one array of a sample. Raise CodecError where it is not what the item says."""
    if array.dtype != np.dtype(item.dtype) or array.ndim != len(item.dims) or array.nbytes > LARGEST:
        raise CodecError(
            f"array {item.name}: expected {item.dtype} with axes {item.dims} and at most {LARGEST} bytes, found "
            f"{array.dtype} {array.shape}"
        )
    data = np.ascontiguousarray(array, dtype=np.dtype(item.dtype).newbyteorder("<"))
    if item.level is None or not data.size:
        return data.tobytes()
    return bytes(Blosc(cname="zstd", clevel=item.level, shuffle=Blosc.SHUFFLE).encode(data))


def decode_item(item: Item, data: bytes | memoryview, limits: Limits, positions: int) -> np.ndarray:
    """Decode one array of a sample on FPN grids of `positions`. Its size is checked before decompression.

    Raise CorruptCache.
    """
    size, dtype = len(data), np.dtype(item.dtype).newbyteorder("<")
    packed = item.level is not None and size > 0
    if packed:
        size = int.from_bytes(data[4:8], "little")
        if len(data) < BLOSC_HEADER or int.from_bytes(data[12:16], "little") != len(data) or not size:
            raise CorruptCache(f"array {item.name}: invalid Blosc header")
    rows = positions * dtype.itemsize if len(item.dims) == 2 else dtype.itemsize
    if not limits[0] <= size <= limits[1] or size % rows:
        expected = f"{limits[0]}" if limits[0] == limits[1] else f"{limits[0]} to {limits[1]}, in multiples of {rows}"
        raise CorruptCache(f"array {item.name}: declares {size} bytes, expected {expected}")
    if packed:
        try:
            data = Blosc().decode(bytes(data))
        except (RuntimeError, ValueError) as error:
            raise CorruptCache(f"array {item.name}: cannot be decompressed ({error})") from error
        if len(data) != size:
            raise CorruptCache(f"array {item.name}: expected {size} bytes, found {len(data)}")
    found = np.frombuffer(data, dtype)
    return found.reshape(positions, -1) if len(item.dims) == 2 else found


def join_items(items: Sequence[bytes]) -> bytes:
    """Return the chunk of a sample."""
    payload = b"".join([pack("<I", len(items)), *(part for item in items for part in (pack("<I", len(item)), item))])
    return payload + pack("<I", crc32c(payload))


def split_items(chunk: memoryview, count: int) -> list[memoryview]:
    """Return the items of a sample's chunk. Raise CorruptCache unless there are `count`, and they fill it exactly."""
    payload, stored = chunk[:-4], int.from_bytes(chunk[-4:], "little")
    if len(chunk) < 8 or crc32c(bytes(payload)) != stored:
        raise CorruptCache(f"checksum mismatch in a chunk of {len(chunk)} bytes: stored {stored:08x}")
    found, at = list[memoryview](), 4
    while at + 4 <= len(payload) and len(found) < count:
        end = at + 4 + int.from_bytes(payload[at : at + 4], "little")
        if end > len(payload):
            break
        found.append(payload[at + 4 : end])
        at = end
    if at != len(payload) or len(found) != count or int.from_bytes(payload[:4], "little") != count:
        raise CorruptCache(f"a chunk of {len(chunk)} bytes does not consist of {count} items")
    return found
