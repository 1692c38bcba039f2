"""The arrays `index/record` and `index/thumbnail` of a shard of version 2: one chunk each, in the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from google_crc32c import value as crc32c

from pipeline.cache.arrays import byte_codecs, zarr_json
from pipeline.cache.items import Item, decode_item, encode_item
from pipeline.errors import CorruptCache
from pipeline.records import RECORD_COLUMNS, THUMBNAIL

INDEX_LEVEL = 5  # zstd level of the index arrays, on Blosc's scale
KEYS = {"name": "v2", "configuration": {"separator": "."}}  # samples/7.0: webdataset's key samples/7, field 0


@dataclass(frozen=True)
class IndexArray:
    """An array that describes all samples, one chunk in the head: its item, and the shape of one sample."""

    item: Item
    shape: tuple[int, ...]

    def metadata(self, samples: int) -> dict[str, Any]:
        """Return its zarr.json."""
        shape = [samples, *self.shape]
        codecs = byte_codecs(self.item.dtype, INDEX_LEVEL)
        return zarr_json(shape, shape, self.item.dtype, KEYS, 0, codecs, ["sample", *self.item.dims])

    @property
    def key(self) -> str:
        """Return the zarr key of its chunk."""
        return f"index/{self.item.name}/" + ".".join("0" * (1 + len(self.shape)))

    def encode(self, rows: np.ndarray) -> bytes:
        """Return the chunk of (N, *shape) rows."""
        flat = Item(self.item.name, self.item.dtype, INDEX_LEVEL, ("byte",))
        payload = encode_item(flat, rows.reshape(-1))
        return payload + crc32c(payload).to_bytes(4, "little")

    def decode(self, chunk: bytes, samples: int) -> np.ndarray:
        """Return the (N, *shape) rows of a chunk. Raise CorruptCache."""
        payload, stored = chunk[:-4], int.from_bytes(chunk[-4:], "little")
        if len(chunk) < 4 or crc32c(payload) != stored:
            raise CorruptCache(f"array index/{self.item.name}: checksum mismatch: stored {stored:08x}")
        flat = Item(f"index/{self.item.name}", self.item.dtype, INDEX_LEVEL, ("byte",))
        size = samples * int(np.prod(self.shape)) * np.dtype(self.item.dtype).itemsize
        return decode_item(flat, payload, (size, size), 1).reshape(samples, *self.shape)


def index_arrays(levels: int) -> tuple[IndexArray, IndexArray]:
    """Return the arrays of `index/`: the view records and the thumbnails."""
    record = Item("record", "int64", INDEX_LEVEL, ("field",))
    thumbnail = Item("thumbnail", "uint8", INDEX_LEVEL, ("row", "column", "bgr"))
    columns = len(RECORD_COLUMNS) + 2 * levels
    return IndexArray(record, (columns,)), IndexArray(thumbnail, (THUMBNAIL, THUMBNAIL, 3))


def encode_index(records: np.ndarray, thumbnails: np.ndarray) -> dict[str, bytes]:
    """Return the chunks of `index/` by the name of their array. records: (N, 11 + 2L). thumbnails: (N, 8, 8, 3)."""
    arrays = index_arrays((records.shape[1] - len(RECORD_COLUMNS)) // 2)
    return {array.item.name: array.encode(rows) for array, rows in zip(arrays, (records, thumbnails))}
