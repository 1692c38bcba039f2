"""Write the head and the samples of a shard of version 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.cache import tar
from pipeline.cache.arrays import ArraySpec, array_metadata, encode_chunk
from pipeline.cache.canonical import canonical
from pipeline.records import RECORD_COLUMNS, THUMBNAIL, record_columns

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


def shard_attributes(identity: dict[str, Any], specs: Sequence[ArraySpec], depth: int) -> dict[str, Any]:
    """Return the attributes of the root group. `depth`: number of FPN levels."""
    arrays = [spec.name for spec in specs]
    return {**identity, "levels": depth, "arrays": arrays, "record_columns": record_columns(depth)}


def record_specs(levels: int) -> list[ArraySpec]:
    """Return the two arrays that shards of every codec have: the view record and the thumbnail."""
    columns = len(RECORD_COLUMNS) + 2 * levels
    side = ("row", "column", "bgr")
    return [
        ArraySpec("record", (columns,), "int64", ("field",)),
        ArraySpec("thumbnail", (THUMBNAIL, THUMBNAIL, 3), "uint8", side),
    ]


def sample_members(specs: Sequence[ArraySpec], index: int, chunks: Mapping[str, bytes]) -> bytes:
    """Return the tar members of a sample, from its encoded arrays."""
    return b"".join(tar.member(spec.chunk_name(index), chunks[spec.name]) for spec in specs)
