"""Format version 1: each array of a sample is one chunk of one zarr array, padded to the largest sample of the shard.

The checksums of a forged shard may be valid. Two more checks therefore apply. The head must equal, byte for byte, the
head that this format writes for the same content. The size of every compressed array must follow from the FPN grids and
channels in the head. New caches have version 2; existing caches are read, resumed, repaired and grown as version 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.budget import parse_json
from pipeline.cache import tar
from pipeline.cache.arrays import LONGEST, ArraySpec, decode_chunk, encode_sample, spec_from_metadata
from pipeline.cache.items import Limits
from pipeline.cache.plausible import most_bytes, padded_positions, read_channels, require_plausible_grids
from pipeline.cache.shard_format import Arrays, Chunks, SampleCodec, View
from pipeline.cache.version1_head import shard_head
from pipeline.errors import CorruptCache
from pipeline.records import RECORD_COLUMNS, THUMBNAIL, LevelShapes

RECORD_ARRAYS = ("record", "thumbnail")  # arrays of every sample that do not belong to the codec
FIXED = {"record": "int64", "thumbnail": "uint8"}  # not compressed, so the declared size is the stored size


@dataclass(frozen=True)
class Head:
    """`attributes` of the root group, `specs` in the order of a sample's members, FPN grids as `shapes` (N, L, 2)."""

    attributes: dict[str, Any]
    specs: list[ArraySpec]
    shapes: np.ndarray

    def levels(self, index: int) -> LevelShapes:
        return tuple(map(tuple, self.shapes[index].tolist()))

    def members(self, index: int) -> list[str]:
        return [spec.chunk_name(index) for spec in self.specs]

    def chunks(self, members: Sequence[memoryview]) -> Chunks:
        return {spec.name: data for spec, data in zip(self.specs, members)}

    def record(self, index: int, chunks: Chunks) -> Arrays:
        return {
            spec.name: decode_chunk(spec, bytes(chunks[spec.name])) for spec in self.specs if spec.name in RECORD_ARRAYS
        }

    def decode(self, index: int, chunks: Chunks, codec: SampleCodec | None) -> Arrays:
        specs = [spec for spec in self.specs if spec.name not in RECORD_ARRAYS]
        if codec is None:
            return {spec.name: decode_chunk(spec, bytes(chunks[spec.name])) for spec in specs}
        levels = self.levels(index)
        limits, largest = codec.size_limits(levels), codec.size_limits(self._largest)
        found = Arrays()
        for spec in specs:
            if spec.name not in limits:
                raise CorruptCache(f"array {spec.name}: not an array of this codec")
            if spec.nbytes > max(largest[spec.name][1], np.dtype(spec.dtype).itemsize):
                most = largest[spec.name][1]
                raise CorruptCache(f"array {spec.name}: declares {spec.nbytes} bytes, expected at most {most}")
            array = decode_chunk(spec, bytes(chunks[spec.name]))
            found[spec.name] = without_padding(spec.name, array, limits[spec.name])
        return codec.read_sample(found, levels)

    @property
    def _largest(self) -> LevelShapes:
        """The FPN grids of the sample with the most positions, for which all arrays have room."""
        return max({tuple(map(tuple, row)) for row in self.shapes.tolist()}, key=padded_positions)


@dataclass(frozen=True)
class Version1:
    """Implements ShardFormat."""

    version: ClassVar[int] = 1
    listed: ClassVar[tuple[str, ...]] = ("plan.json",)

    def parse_head(self, data: bytes, samples: int) -> Head:
        return parse_head(data, samples)

    def encode_alone(self, codec: SampleCodec, levels: LevelShapes, sample: Arrays) -> dict[str, bytes]:
        return encode_sample(codec.specs([levels], [sample]), sample)

    def identity(self, plan: str, codec: str, gate: Callable[[], str]) -> dict[str, str]:
        return {"plan": plan, "codec": codec}

    def calibration_views(self, planned: Mapping[str, int], read: Mapping[str, Iterable[View]]) -> dict[str, Any]:
        return {"views" if part == "learning" else part: count for part, count in planned.items()}

    def covers(self, name: str) -> bool:
        return name.endswith(".tar") or name.startswith("codec") or name == "plan.json"

    def pass_content(self, manifest: dict[str, Any]) -> Any:
        return {name: entry["sha256"] for name, entry in manifest["files"].items() if name.endswith(".tar")}


def without_padding(name: str, array: np.ndarray, limits: Limits) -> np.ndarray:
    """Return a sample's own part of an array. Raise CorruptCache where the array is too small or too large.

    Tokens have no size of their own: they end before the final zeros, which no encoder writes.
    """
    least, most = limits
    if least < most:
        found = array[: int(np.flatnonzero(array)[-1]) + 1] if array.any() else array[:0]
    else:
        found = array[: most * len(array) // max(1, array.nbytes)]
    if not least <= found.nbytes <= most:
        raise CorruptCache(f"array {name}: has {found.nbytes} bytes without padding, expected {least} to {most}")
    return found


def parse_head(data: bytes, samples: int) -> Head:
    """Parse and check the head of a shard of `samples` samples. Raise CorruptCache where it is invalid."""
    files = dict(tar.parse(data))
    try:
        attributes = parse_json(bytes(files["zarr.json"]))["attributes"]
        specs = [spec_from_metadata(name, _json(files, f"{name}/zarr.json")) for name in attributes["arrays"]]
        index = {}
        for name in [n.split("/")[1] for n in files if n.startswith("index/") and n.count("/") == 2]:
            meta = _json(files, f"index/{name}/zarr.json")
            if not all(type(side) is int and 0 <= side <= LONGEST for side in meta["shape"]):
                raise ValueError(f"invalid shape of index/{name}")
            spec = ArraySpec(name, tuple(meta["shape"]), meta["data_type"], tuple(meta["dimension_names"]))
            chunk = bytes(files["/".join(["index", name, "c"] + ["0"] * len(spec.shape))])
            index[name] = (decode_chunk(spec, chunk), spec.dims)
        if shard_head(specs, attributes, samples, index) != data:
            raise ValueError("header is not canonically encoded")
        shapes = index["shapes"][0] if specs else np.zeros((0, 0, 2), np.int64)
        _require_plausible_sizes(specs, shapes, samples, attributes)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise CorruptCache(f"invalid shard head ({type(error).__name__}: {error!s:.100})") from error
    return Head(attributes, specs, shapes)


def _json(files: Mapping[str, Any], name: str) -> Any:
    return parse_json(bytes(files[name]))


def _require_plausible_sizes(
    specs: list[ArraySpec], shapes: np.ndarray, samples: int, attributes: dict[str, Any]
) -> None:
    """Raise ValueError where an array is larger than its samples' FPN grids allow."""
    if not specs:
        return
    depth = attributes["levels"]
    channels = read_channels(attributes["codec"])
    require_plausible_grids(shapes, samples, depth, channels)
    most = max(most_bytes(levels, channels) for levels in np.unique(shapes, axis=0))
    fixed = {"record": (len(RECORD_COLUMNS) + 2 * depth,), "thumbnail": (THUMBNAIL, THUMBNAIL, 3)}
    for spec in specs:
        if spec.name in fixed:
            if (spec.shape, spec.dtype, spec.level) != (fixed.pop(spec.name), FIXED[spec.name], None):
                raise ValueError(f"invalid array {spec.name} of shape {spec.shape}")
        elif spec.nbytes > most:
            raise ValueError(f"array {spec.name}: expected at most {most} bytes a sample, found {spec.nbytes}")
    if fixed:
        raise ValueError(f"array {sorted(fixed)[0]} is missing")
