"""Format version 2: a sample is one tar member, which is one chunk of one zarr array of byte strings.

The checksums of a forged shard may be valid. The head must therefore equal, byte for byte, the head that this format
writes for the same attributes and index chunks, and the decoded size of every item must be one that its codec can make
for the sample's FPN grids. Without a codec, the limit is four bytes for each channel of each position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.budget import parse_json
from pipeline.cache import tar
from pipeline.cache.arrays import CHECKSUM, zarr_json
from pipeline.cache.canonical import canonical, digest
from pipeline.cache.items import Item, Limits, decode_item, encode_item, item_from_json, join_items, split_items
from pipeline.cache.plausible import most_bytes, read_channels, require_plausible_grids
from pipeline.cache.shard_format import Arrays, Chunks, SampleCodec, View
from pipeline.cache.shard_index import KEYS, index_arrays
from pipeline.errors import CorruptCache
from pipeline.records import RECORD_COLUMNS, LevelShapes, record_columns


@dataclass(frozen=True)
class Head:
    """`attributes` of the root group, the items of a sample, and the rows of `index/record` and `index/thumbnail`."""

    attributes: dict[str, Any]
    items: tuple[Item, ...]
    records: np.ndarray
    thumbnails: np.ndarray

    def levels(self, index: int) -> LevelShapes:
        return tuple(map(tuple, self.records[index, len(RECORD_COLUMNS) :].reshape(-1, 2).tolist()))

    def members(self, index: int) -> list[str]:
        return [sample_name(index)]

    def chunks(self, members: Sequence[memoryview]) -> Chunks:
        (chunk,) = members
        return dict(zip((item.name for item in self.items), split_items(chunk, len(self.items))))

    def record(self, index: int, chunks: Chunks) -> Arrays:
        return {"record": self.records[index], "thumbnail": self.thumbnails[index]}

    def decode(self, index: int, chunks: Chunks, codec: SampleCodec | None) -> Arrays:
        levels = self.levels(index)
        limits = self._limits(levels) if codec is None else codec.size_limits(levels)
        places, found = sum(h * w for h, w in levels), Arrays()
        for item in self.items:
            if item.name not in limits:
                raise CorruptCache(f"array {item.name}: not an array of this codec")
            found[item.name] = decode_item(item, chunks[item.name], limits[item.name], places)
        return found if codec is None else codec.read_sample(found, levels)

    def _limits(self, levels: LevelShapes) -> dict[str, Limits]:
        """Return the least and the most bytes of each item that any codec makes for these grids."""
        most = most_bytes(levels, read_channels(self.attributes["codec"]))
        return {item.name: (0, most) for item in self.items}


@dataclass(frozen=True)
class Version2:
    """Implements ShardFormat."""

    version: ClassVar[int] = 2
    listed: ClassVar[tuple[str, ...]] = ("plan.json", "quarantine.json")

    def parse_head(self, data: bytes, samples: int) -> Head:
        return parse_head(data, samples)

    def encode_alone(self, codec: SampleCodec, levels: LevelShapes, sample: Arrays) -> dict[str, bytes]:
        return encode_sample(codec.items(), sample)

    def identity(self, plan: str, codec: str, gate: Callable[[], str]) -> dict[str, str]:
        return {"plan": plan, "codec": codec, "gate": gate()}

    def calibration_views(self, planned: Mapping[str, int], read: Mapping[str, Iterable[View]]) -> dict[str, Any]:
        return {part: [list(view) for view in sorted(read.get(part, ()))] for part in planned}

    def covers(self, name: str) -> bool:
        return name != "summary.json"

    def pass_content(self, manifest: dict[str, Any]) -> Any:
        return digest(manifest)


def sample_name(index: int) -> str:
    """Return the zarr key of a sample's chunk, which is also its name in the tar."""
    return f"samples/{index}.0"


def encode_sample(items: Sequence[Item], sample: Arrays) -> dict[str, bytes]:
    """Encode the arrays of one sample. Return its items by name."""
    return {item.name: encode_item(item, sample[item.name]) for item in items}


def sample_member(items: Sequence[Item], index: int, encoded: Mapping[str, bytes]) -> bytes:
    """Return the tar member of a sample."""
    return tar.member(sample_name(index), join_items([encoded[item.name] for item in items]))


def shard_attributes(identity: dict[str, Any], items: Sequence[Item], depth: int) -> dict[str, Any]:
    """Return the attributes of the root group. `depth`: number of FPN levels. A shard without samples has no arrays."""
    arrays = [item.to_json() for item in items] if depth else []
    return {**identity, "levels": depth, "arrays": arrays, "record_columns": record_columns(depth)}


def shard_head(attributes: dict[str, Any], samples: int, index: Mapping[str, bytes]) -> bytes:
    """Encode the head of a shard: tar members with zarr metadata and the chunks of `index/`. index: chunks by array."""
    group = {"zarr_format": 3, "node_type": "group"}
    files = {"zarr.json": canonical({**group, "attributes": attributes})}
    if samples:
        width = len(attributes["arrays"])
        codecs: list[dict[str, Any]] = [{"name": "vlen-bytes", "configuration": {}}, CHECKSUM]
        shape, chunk, dims = (samples, width), (1, width), ("sample", "array")
        meta = zarr_json(shape, chunk, "variable_length_bytes", KEYS, "", codecs, dims)
        files["samples/zarr.json"] = canonical(meta)
    files["index/zarr.json"] = canonical({**group, "attributes": {}})
    for array in index_arrays(attributes["levels"]) if samples else ():
        files[f"index/{array.item.name}/zarr.json"] = canonical(array.metadata(samples))
        files[array.key] = index[array.item.name]
    return b"".join(tar.member(name, data) for name, data in files.items())


def parse_head(data: bytes, samples: int) -> Head:
    """Parse and check the head of a shard of `samples` samples. Raise CorruptCache where it is invalid."""
    files = {name: bytes(content) for name, content in tar.parse(data)}
    try:
        attributes = parse_json(files["zarr.json"])["attributes"]
        depth, items = attributes["levels"], tuple(map(item_from_json, attributes["arrays"]))
        if type(depth) is not int or not 0 <= depth <= 64 or len({item.name for item in items}) != len(items):
            raise ValueError(f"invalid levels {depth!r:.20} or arrays")
        if attributes["record_columns"] != record_columns(depth):
            raise ValueError("record_columns are not those of this format")
        arrays = index_arrays(depth)
        index = {array.item.name: files[array.key] for array in arrays} if samples else {}
        if shard_head(attributes, samples, index) != data:
            raise ValueError("header is not canonically encoded")
        if not samples:
            return Head(attributes, items, *(np.zeros((0, *array.shape), array.item.dtype) for array in arrays))
        channels = read_channels(attributes["codec"])
        records, thumbnails = (array.decode(index[array.item.name], samples) for array in arrays)
        shapes = records[:, len(RECORD_COLUMNS) :].reshape(samples, depth, 2)
        require_plausible_grids(shapes, samples, depth, channels)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise CorruptCache(f"invalid shard head ({type(error).__name__}: {error!s:.100})") from error
    return Head(attributes, items, records, thumbnails)
