"""Caches whose seals, checksums and digests are right, and which declare more than a real one needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import read_json, write_json
from pipeline.cache.manifest import write_manifest
from pipeline.cache.shard_plan import ShardPlan
from pipeline.codecs.base import Codec
from pipeline.codecs.group import open_codec
from pipeline.codecs.packing import Sample
from pipeline.records import LevelShapes, ViewRecord
from pipeline.stage1.encode import EncodedViews
from pipeline.stage1.shard import new_shard
from pipeline.stage1.target import ShardTarget
from pipeline.storage.local import sha256_file


def pyramid(height: int, width: int, levels: int = 5) -> LevelShapes:
    """Return FPN grids that halve from level to level."""
    return tuple((-(-height // 2**n), -(-width // 2**n)) for n in range(levels))


def empty_sample(codec: Codec, levels: LevelShapes, tokens: int = 0) -> Sample:
    """Return the arrays of a view in which the teacher sees nothing. tokens: of each tensor, each for the next symbol.

    They compress to almost nothing.
    """
    limits, found = codec.size_limits(levels), {}
    for item in codec.items():
        size = np.dtype(item.dtype).itemsize
        if codec.name == "frs" and item.name != "frs":
            found[item.name] = np.full(min(tokens, limits[item.name][1] // size), 2 << 8, item.dtype)
        else:
            rows = sum(h * w for h, w in levels)
            array = np.zeros(limits[item.name][1] // size, item.dtype)
            found[item.name] = array.reshape(rows, -1) if len(item.dims) == 2 else array
    return found


def forge_pass(
    root: Path, pad: tuple[int, int], levels: LevelShapes, views: int = 8, tokens: int = 0, codec: Codec | None = None
) -> Path:
    """Replace pass 0 of a cache by one shard of equal views. codec: None takes that of the cache."""
    cache = Cache(root)
    codec = codec or open_codec(cache)
    images = sorted(cache.images())[:views]
    plan = ShardPlan(((pad, tuple((image, 0) for image in images)),))
    for path in (root / "pass-0").iterdir():
        path.unlink()
    write_json(root / "pass-0/plan.json", {"pass": 0, "shards": [plan.to_json()]})
    if cache.version == 2:
        write_json(root / "pass-0/quarantine.json", {"images": []})
    thumbnail = np.zeros((8, 8, 3), np.uint8)
    records = [ViewRecord(image, 0, pad, pad, pad, 0, 0, 0, thumbnail) for image in images]
    identity = {"pass": 0, "shard": 0, "plan": cache.plan_digest, "recipe": cache.plan["recipe_digest"]}
    target = ShardTarget(
        root / "pass-0/shard-00000.tar",
        cache.version,
        identity,
        codec,
        cache.codec_digest,
        plan,
        [levels] * len(images),
    )
    with new_shard(target) as shard:
        for record in records:
            sample = empty_sample(codec, levels, tokens)
            sample |= {"record": record.row(levels), "thumbnail": thumbnail}
            shard.add(EncodedViews([record], [sample], {}))
        shard.commit()
    write_manifest(root, 0, cache.plan_digest, 1, 0, [], {}, cache.version)
    return root


def forge_codec(root: Path, settings: dict[str, Any], tables: dict[str, np.ndarray] | None = None) -> Path:
    """Change settings of codec.json and tables of codec/, with right digests. Shards keep the old codec."""
    import zarr

    manifest = read_json(root / "codec.json")
    manifest["settings"] |= settings
    group = zarr.open_group(root / "codec", mode="a")
    for name, table in (tables or {}).items():
        config: Any = {"write_empty_chunks": True}
        group.create_array(name, data=table, chunks=table.shape, compressors=None, overwrite=True, config=config)
    paths = sorted(path for path in (root / "codec").rglob("*") if path.is_file())
    manifest["files"] = {path.relative_to(root / "codec").as_posix(): sha256_file(path) for path in paths}
    write_json(root / "codec.json", manifest)
    return root
