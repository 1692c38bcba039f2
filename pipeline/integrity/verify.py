"""Check every byte of a cache. Imports neither torch nor mmdet, except to decode samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.cache.layout import pass_folder
from pipeline.cache.manifest import check_pass
from pipeline.cache.schema import GATE, QUARANTINE, read_fields
from pipeline.errors import CacheError, PipelineError
from pipeline.storage.place import Place


def verify(root: str | Place) -> dict[str, Any]:
    """Read every file of a cache and compare its digest. Raise the PipelineError of the first that differs."""
    for fault in find_faults(root):
        raise fault
    return count_files(root)


def count_files(root: str | Place) -> dict[str, Any]:
    """Count files and bytes of a cache for which `find_faults` is empty."""
    cache = Cache(root)
    manifests = [cache.manifest(number) for number in cache.passes()]
    files = len(cache.codec_manifest()["files"]) + sum(len(m["files"]) for m in manifests)
    return {"cache": str(root), "files": files, "bytes": sum(m["bytes"] for m in manifests)}


def find_faults(root: str | Place) -> Iterator[PipelineError]:
    """Yield an error for each fault of a cache, file by file."""
    try:
        cache = Cache(root)
    except PipelineError as error:
        yield error
        return
    folders = [pass_folder(cache.root, number) for number in sorted({*cache.passes(), *cache.incomplete()})]
    small = [(cache.root / "gate.json", GATE), *((folder / "quarantine.json", QUARANTINE) for folder in folders)]
    for path, fields in small:
        if path.exists():
            yield from _catch_fault(read_fields, path, fields)
    yield from _catch_fault(cache.codec_manifest)
    for number in cache.incomplete():
        yield CacheError(
            f"{pass_folder(cache.root, number)}: not complete (manifest.json is missing); run stage 1 again"
        )
    for number in cache.passes():
        faults = list(_catch_fault(cache.manifest, number))
        yield from faults or check_pass(cache.root, number, cache.manifest(number), cache.codec_digest)


def _catch_fault(check: Any, *arguments: Any) -> Iterator[PipelineError]:
    try:
        check(*arguments)
    except PipelineError as error:
        yield error


def collect_findings(root: str | Place, deep: bool, progress: Any) -> dict[str, Any]:
    """Return the report of `verify` as a dict: 'whole' (the cache is intact), and 'bad' (one line for each fault)."""
    bad = list(find_faults(root))
    found: dict[str, Any] = {"cache": str(root)} if bad else count_files(root)
    if deep and not bad:
        from pipeline.integrity.decode_all import find_decode_faults

        bad = list(find_decode_faults(root, progress))
        cache = Cache(root)
        found["decoded"] = sum(cache.manifest(number)["samples"] for number in cache.passes())
    return {**found, "whole": not bad, "bad": [str(error) for error in bad]}
