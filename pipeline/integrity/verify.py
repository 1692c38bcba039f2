"""Check every byte of a cache. Imports neither torch nor mmdet, except to decode samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.cache.completeness import count_expected_passes, find_foreign_passes, find_missing_passes
from pipeline.cache.layout import pass_folder, read_recorded_passes
from pipeline.cache.manifest import check_pass
from pipeline.cache.quarantine import FILE, Quarantine
from pipeline.cache.schema import GATE, read_fields
from pipeline.errors import CacheError, CorruptCache, PipelineError
from pipeline.integrity.codec_copy import check_copy
from pipeline.integrity.image_files import find_image_faults
from pipeline.progress import LARGE_FILE, Log, Progress, ignore
from pipeline.storage.files import local_path
from pipeline.storage.place import REPAIR, Place, remedy


def verify(root: str | Place, passes: int = 0, log: Log = ignore) -> dict[str, Any]:
    """Read every file of a cache and compare its digest. Raise the PipelineError of the first that differs.

    `passes`: the least number of passes of the complete cache, as a config knows it. `log` gets a line before each
    large pass.
    """
    for fault in find_faults(root, passes, log):
        raise fault
    return count_files(Cache(root), passes)


def count_files(cache: Cache, passes: int = 0) -> dict[str, Any]:
    """Count files, bytes and passes of a cache for which `find_faults` is empty."""
    manifests = [cache.manifest(number) for number in cache.passes()]
    files = len(cache.codec_manifest()["files"]) + sum(len(m["files"]) for m in manifests)
    size = sum(m["bytes"] for m in manifests)
    stored = cache.image_manifest()
    if stored is not None:
        files, size = files + len(stored["files"]), size + stored["bytes"]
    return {"cache": str(cache.root), "files": files, "bytes": size, **count_passes(cache, passes)}


def count_passes(cache: Cache, passes: int = 0) -> dict[str, Any]:
    """Count the complete passes and the passes of the complete cache, which is None if that is unknown."""
    return {"passes": len(cache.passes()), "expected_passes": count_expected_passes(cache, passes)}


def find_faults(root: str | Place, passes: int = 0, log: Log = ignore) -> Iterator[PipelineError]:
    """Yield an error for each fault of a cache: missing passes, then the others file by file."""
    try:
        cache = Cache(root)
    except PipelineError as error:
        yield error
        return
    yield from filter(None, (find_missing_passes(cache, passes), find_foreign_passes(cache)))
    yield from _catch_fault(read_recorded_passes, cache.root)
    yield from _catch_fault(read_fields, cache.root / "gate.json", GATE)
    yield from _catch_fault(_check_codec, cache)
    for number in cache.incomplete():
        yield from _catch_fault(Quarantine.load, pass_folder(cache.root, number))
    for number in cache.passes():
        faults = list(_catch_fault(cache.manifest, number))
        yield from faults
        if not faults:
            yield from _catch_fault(_check_quarantine, cache, number)
            yield from _check_bytes(cache, number, log)
    yield from find_image_faults(cache, log)


def _check_codec(cache: Cache) -> None:
    """Raise CorruptCache where the codec or its copy is damaged."""
    manifest, root = cache.codec_manifest(), local_path(cache.root)
    if root is not None:
        check_copy(root, manifest)


def _check_bytes(cache: Cache, number: int, log: Log) -> list[CacheError]:
    """Read every byte of a pass."""
    manifest = cache.manifest(number)
    if manifest["bytes"] > LARGE_FILE or local_path(cache.root) is None:
        log(f"pass {number}   reading {len(manifest['files'])} files, {manifest['bytes'] / 1e6:.0f} MB")
    return check_pass(cache.root, number, manifest, cache.codec_digest)


def _check_quarantine(cache: Cache, number: int) -> None:
    """Raise CorruptCache where quarantine.json differs from its copy in the manifest. Stage 1 reads this file."""
    path = pass_folder(cache.root, number) / FILE
    listed, found = cache.quarantine(number), Quarantine.load(path.parent)
    if listed.rows != found.rows:
        raise CorruptCache(
            f"{path}: lists {len(found.images)} images, the manifest {len(listed.images)}, or other reasons; "
            f"{remedy(path, REPAIR)}"
        )


def _catch_fault(check: Any, *arguments: Any) -> Iterator[PipelineError]:
    try:
        check(*arguments)
    except PipelineError as error:
        yield error


def collect_findings(
    root: str | Place, deep: bool, progress: Progress, passes: int = 0, log: Log = ignore
) -> dict[str, Any]:
    """Return the report of `verify` as a dict: 'whole' (the cache is intact), and 'bad' (one line for each fault)."""
    bad, found = list(find_faults(root, passes, log)), dict[str, Any](cache=str(root))
    with suppress(PipelineError):  # it is one of the faults
        cache = Cache(root)
        found |= count_passes(cache, passes) if bad else count_files(cache, passes)
    if deep and not bad:
        from pipeline.integrity.decode_all import find_decode_faults

        bad = list(find_decode_faults(root, progress))
        found["decoded"] = sum(cache.manifest(number)["samples"] for number in cache.passes())
    return {**found, "whole": not bad, "bad": [str(error) for error in bad]}
