"""The head of a shard, which describes its arrays, and the checks that limit what a forged shard can allocate.

The checksums of a forged shard may be valid. Two more checks therefore apply. The head must equal, byte for byte, the
head that this format writes for the same content. The size of every compressed array must follow from the FPN grids and
channels in the head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.cache import tar
from pipeline.cache.arrays import ArraySpec, array_metadata, decode_chunk, encode_chunk, spec_from_metadata
from pipeline.cache.canonical import canonical
from pipeline.cache.plausible import most_bytes, read_channels, require_plausible_grids
from pipeline.errors import CorruptCache
from pipeline.records import RECORD_COLUMNS, THUMBNAIL

FIXED = {"record": "int64", "thumbnail": "uint8"}  # not compressed, so the declared size is the stored size


@dataclass(frozen=True)
class Head:
    """`attributes` of the root group, `specs` in the order of a sample's members, FPN grids as `shapes` (N, L, 2)."""

    attributes: dict[str, Any]
    specs: list[ArraySpec]
    shapes: np.ndarray


Index = dict[str, tuple[np.ndarray, tuple[str, ...]]]


def shard_head(specs: Sequence[ArraySpec], attributes: dict[str, Any], samples: int, index: Index) -> bytes:
    """Encode the head of a shard: tar members with zarr metadata, and the small `index/` arrays in one chunk each."""
    files = {"zarr.json": canonical({"zarr_format": 3, "node_type": "group", "attributes": attributes})}
    for spec in specs:
        files[f"{spec.name}/zarr.json"] = canonical(spec.metadata(samples))
    files["index/zarr.json"] = canonical({"zarr_format": 3, "node_type": "group", "attributes": {}})
    for name, (values, dims) in index.items():
        meta = array_metadata(values.shape, values.shape, str(values.dtype), dims, None)
        files[f"index/{name}/zarr.json"] = canonical(meta)
        spec = ArraySpec(name, values.shape, str(values.dtype), dims)
        files["/".join(["index", name, "c"] + ["0"] * values.ndim)] = encode_chunk(spec, values)
    return b"".join(tar.member(name, data) for name, data in files.items())


def record_specs(levels: int) -> list[ArraySpec]:
    """Return the two arrays that shards of every codec have: the view record and the thumbnail."""
    columns = len(RECORD_COLUMNS) + 2 * levels
    side = ("row", "column", "bgr")
    return [
        ArraySpec("record", (columns,), "int64", ("field",)),
        ArraySpec("thumbnail", (THUMBNAIL, THUMBNAIL, 3), "uint8", side),
    ]


def record_columns(levels: int) -> list[str]:
    return [*RECORD_COLUMNS, *(f"level{n}_{side}" for n in range(levels) for side in ("height", "width"))]


def parse_head(data: bytes, samples: int) -> Head:
    """Parse and check the head of a shard of `samples` samples. Raise CorruptCache where it is invalid."""
    files = dict(tar.parse(data))
    try:
        attributes = json.loads(bytes(files["zarr.json"]))["attributes"]
        specs = [spec_from_metadata(name, _json(files, f"{name}/zarr.json")) for name in attributes["arrays"]]
        index = {}
        for name in [n.split("/")[1] for n in files if n.startswith("index/") and n.count("/") == 2]:
            meta = _json(files, f"index/{name}/zarr.json")
            spec = ArraySpec(name, tuple(meta["shape"]), meta["data_type"], tuple(meta["dimension_names"]))
            chunk = bytes(files["/".join(["index", name, "c"] + ["0"] * len(spec.shape))])
            index[name] = (decode_chunk(spec, chunk), spec.dims)
        if shard_head(specs, attributes, samples, index) != data:
            raise ValueError("header is not canonically encoded")
        shapes = index["shapes"][0] if specs else np.zeros((0, 0, 2), np.int64)
        _require_plausible_sizes(specs, shapes, samples, attributes)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise CorruptCache(f"invalid shard head ({type(error).__name__}: {error!s:.80})") from error
    return Head(attributes, specs, shapes)


def _json(files: Mapping[str, Any], name: str) -> Any:
    return json.loads(bytes(files[name]))


def _require_plausible_sizes(
    specs: list[ArraySpec], shapes: np.ndarray, samples: int, attributes: dict[str, Any]
) -> None:
    """Raise ValueError where an array is larger than its samples' FPN grids allow."""
    if not specs:
        return
    depth = attributes["levels"]
    require_plausible_grids(shapes, samples, depth)
    channels = read_channels(attributes["codec"])
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
