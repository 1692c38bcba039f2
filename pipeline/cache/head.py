"""The head of a shard: what its arrays are. Nothing is decompressed that is larger than what it can honestly declare.

A forged shard may have perfect checksums. So the head must be, to the byte, the one that this format writes for what
it says, and the size of every compressed array must follow from the FPN grids and channels that stand beside it.
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
from pipeline.errors import CorruptCache
from pipeline.records import RECORD_COLUMNS, THUMBNAIL

WIDEST = 1 << 16  # channels of a feature map or a class head
UNEVEN = 2  # a shard's largest sample has at most this many times the positions of its smallest (planned: 1.25)
FEW = 64  # positions by which that may be more: on coarse levels a step is a whole position
FIXED = {"record": "int64", "thumbnail": "uint8"}  # stored plain, so that no more is declared than is there


@dataclass(frozen=True)
class Head:
    """attributes: of the root group; specs: arrays in the order of a sample's members; shapes (N, L, 2): FPN grids."""

    attributes: dict[str, Any]
    specs: list[ArraySpec]
    shapes: np.ndarray


Index = dict[str, tuple[np.ndarray, tuple[str, ...]]]


def shard_head(specs: Sequence[ArraySpec], attributes: dict[str, Any], samples: int, index: Index) -> bytes:
    """Tar members that stand once per shard: zarr metadata, and the small `index/` arrays in one chunk each."""
    files = {"zarr.json": canonical({"zarr_format": 3, "node_type": "group", "attributes": attributes})}
    for spec in specs:
        files[f"{spec.name}/zarr.json"] = canonical(spec.metadata(samples))
    files["index/zarr.json"] = canonical({"zarr_format": 3, "node_type": "group", "attributes": {}})
    for name, (values, dims) in index.items():
        meta = array_metadata(values.shape, values.shape, str(values.dtype), dims, None)
        files[f"index/{name}/zarr.json"] = canonical(meta)
        whole = ArraySpec(name, values.shape, str(values.dtype), dims)
        files["/".join(["index", name, "c"] + ["0"] * values.ndim)] = encode_chunk(whole, values)
    return b"".join(tar.member(name, data) for name, data in files.items())


def record_specs(levels: int) -> list[ArraySpec]:
    """The two arrays that every codec's shards share: who the sample is, and what it looked like."""
    columns = len(RECORD_COLUMNS) + 2 * levels
    side = ("row", "column", "bgr")
    return [
        ArraySpec("record", (columns,), "int64", ("field",)),
        ArraySpec("thumbnail", (THUMBNAIL, THUMBNAIL, 3), "uint8", side),
    ]


def record_columns(levels: int) -> list[str]:
    return [*RECORD_COLUMNS, *(f"level{n}_{side}" for n in range(levels) for side in ("height", "width"))]


def parse_head(data: bytes, samples: int) -> Head:
    """The checked head of a shard of so many samples. Raises CorruptCache."""
    files = dict(tar.parse(data))
    try:
        attributes = json.loads(bytes(files["zarr.json"]))["attributes"]
        specs = [spec_from_metadata(name, _json(files, f"{name}/zarr.json")) for name in attributes["arrays"]]
        index = {}
        for name in [n.split("/")[1] for n in files if n.startswith("index/") and n.count("/") == 2]:
            meta = _json(files, f"index/{name}/zarr.json")
            whole = ArraySpec(name, tuple(meta["shape"]), meta["data_type"], tuple(meta["dimension_names"]))
            chunk = bytes(files["/".join(["index", name, "c"] + ["0"] * len(whole.shape))])
            index[name] = (decode_chunk(whole, chunk), whole.dims)
        if shard_head(specs, attributes, samples, index) != data:
            raise ValueError("it says more, or says it in another way, than this format does")
        shapes = index["shapes"][0] if specs else np.zeros((0, 0, 2), np.int64)
        _require_honest(specs, shapes, samples, attributes)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise CorruptCache(f"its head is not one of this format ({type(error).__name__}: {error!s:.80})") from error
    return Head(attributes, specs, shapes)


def _json(files: Mapping[str, Any], name: str) -> Any:
    return json.loads(bytes(files[name]))


def _require_honest(specs: list[ArraySpec], shapes: np.ndarray, samples: int, attributes: dict[str, Any]) -> None:
    """Raise ValueError where an array is larger than what its samples' grids can need."""
    if not specs:
        return
    depth = attributes["levels"]
    if (
        shapes.dtype != np.int64
        or shapes.shape != (samples, depth, 2)
        or not 0 < shapes.min() <= shapes.max() < 1 << 20
    ):
        raise ValueError(f"FPN grids of shape {shapes.shape}")
    positions = shapes.prod(axis=2).sum(axis=1)
    if positions.max() > UNEVEN * positions.min() + FEW:
        raise ValueError("samples of unlike sizes")
    wide = [attributes["codec"][key] for key in ("channels", "score_channels")]  # no score channels: left out
    if any(type(n) is not int or not 0 <= n <= WIDEST for n in wide) or not wide[0]:
        raise ValueError(f"{wide} channels")
    # At most one number of four bytes for each channel of each position, levels padded to blocks of 4 x 4.
    most = 4 * max(wide) * int((-(-shapes // 4) * 4).prod(axis=2).sum(axis=1).max()) + depth
    fixed = {"record": (len(RECORD_COLUMNS) + 2 * depth,), "thumbnail": (THUMBNAIL, THUMBNAIL, 3)}
    for spec in specs:
        if spec.name in fixed:
            if (spec.shape, spec.dtype, spec.level) != (fixed.pop(spec.name), FIXED[spec.name], None):
                raise ValueError(f"array {spec.name} of shape {spec.shape}")
        elif spec.nbytes > most:
            raise ValueError(f"array {spec.name} declares {spec.nbytes} bytes a sample, its grids need {most} at most")
    if fixed:
        raise ValueError(f"no array {sorted(fixed)[0]}")
