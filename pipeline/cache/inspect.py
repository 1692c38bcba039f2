"""Describe a cache as plain data, for `info`, summary.json and the report."""

from __future__ import annotations

from typing import Any

from pipeline.cache.cache import Cache
from pipeline.cache.completeness import count_expected_passes
from pipeline.cache.manifest import totals
from pipeline.errors import CacheError
from pipeline.storage.place import Place


def describe(root: str | Place) -> dict[str, Any]:
    """Return everything that `info` prints about a cache. `content` is None where gate.json is missing."""
    cache = Cache(root)
    manifests = {number: cache.manifest(number) for number in cache.passes()}
    parts = totals(m["bytes_by_array"] for m in manifests.values())
    size = sum(m["bytes"] for m in manifests.values())
    codec, complete = cache.codec_manifest(), (cache.root / "gate.json").exists()
    return {
        "cache": str(cache.root),
        "format": [cache.plan["format"], cache.plan["version"]],
        "images": len(cache.images()),
        "views": sum(m["samples"] for m in manifests.values()),
        "passes": {number: m["samples"] for number, m in manifests.items()},
        "expected_passes": count_expected_passes(cache),
        "bytes": size,
        "bytes_by_tensor": {**parts, "overhead": size - sum(parts.values())},
        "fp16_bytes": sum(m["raw_fp16_bytes"] for m in manifests.values()),
        "stored_images": count_stored_images(cache),
        "codec": codec["settings"],
        "calibration": count_views(cache.codec_measured),
        "measured": {number: m["measured"] for number, m in manifests.items()},
        "quarantine": sum(len(m["quarantine"]) for m in manifests.values()),
        "teacher": {**cache.recipe["teacher"], "sha256": cache.plan["teacher_sha256"]},
        "annotations_sha256": cache.recipe["data"]["annotations_sha256"],
        "recipe": cache.plan["recipe_digest"],
        "content": cache.content() if complete else None,
    }


def count_stored_images(cache: Cache) -> dict[str, int] | None:
    """Return the number of the stored image files and their bytes; None if the cache has none."""
    manifest = cache.image_manifest()
    return manifest and {"images": manifest["images"], "bytes": manifest["bytes"]}


def count_views(measured: dict[str, Any]) -> dict[str, int]:
    """Return the number of calibration views by part. Version 1 stores numbers, version 2 the views themselves."""
    found = {k: len(v) if isinstance(v, list) else v for k, v in measured.items()}
    return {k: v for k, v in found.items() if isinstance(v, int)}


def summarise(root: Place, computed: int, seconds: float) -> dict[str, Any]:
    """Return summary.json: the content of a cache, and the views and seconds that stage 1 computed for it."""
    cache = Cache(root)
    manifests = [cache.manifest(number) for number in cache.passes()]
    if not manifests:
        raise CacheError(f"{root}: no pass is complete; run stage 1 again")
    samples, size = sum(m["samples"] for m in manifests), sum(m["bytes"] for m in manifests)
    raw = sum(m["raw_fp16_bytes"] for m in manifests)
    return {
        "images": len(cache.images()),
        "views": samples,
        "passes": len(manifests),
        "bytes": size,
        "bytes_per_view": round(size / max(1, samples), 1),
        "fp16_bytes": raw,
        "ratio_to_fp16": round(raw / max(1, size), 2),
        **({"stored_images": stored} if (stored := count_stored_images(cache)) else {}),
        "views_computed": computed,
        "quarantined": sum(len(m["quarantine"]) for m in manifests),
        "seconds": round(seconds, 2),
        "codec": cache.recipe["codec"]["type"],
        "recipe": cache.plan["recipe_digest"],
        "content": cache.content(),
    }
