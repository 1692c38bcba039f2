"""Is every byte of a cache the one that was written? Imports neither torch nor mmdet, unless asked to decode."""

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
    """Read every file of a cache and compare its digest. Raises the PipelineError of the first that differs."""
    for fault in find_faults(root):
        raise fault
    return count_files(root)


def count_files(root: str | Place) -> dict[str, Any]:
    """Count files and bytes of a cache without `find_faults`."""
    cache = Cache(root)
    manifests = [cache.manifest(number) for number in cache.passes()]
    files = len(cache.codec_manifest()["files"]) + sum(len(m["files"]) for m in manifests)
    return {"cache": str(root), "files": files, "bytes": sum(m["bytes"] for m in manifests)}


def find_faults(root: str | Place) -> Iterator[PipelineError]:
    """Yield what is wrong with a cache, file by file."""
    try:
        cache = Cache(root)
    except PipelineError as error:
        yield error
        return
    folders = [pass_folder(cache.root, number) for number in sorted({*cache.passes(), *cache.incomplete()})]
    small = [(cache.root / "gate.json", GATE), *((folder / "quarantine.json", QUARANTINE) for folder in folders)]
    for path, fields in small:
        if path.exists():
            yield from _fault(read_fields, path, fields)
    yield from _fault(cache.codec_manifest)
    for number in cache.incomplete():
        yield CacheError(f"{pass_folder(cache.root, number)}: not complete (no manifest.json); run stage 1 again")
    for number in cache.passes():
        wrong = list(_fault(cache.manifest, number))
        yield from wrong or check_pass(cache.root, number, cache.manifest(number), cache.codec_digest)


def _fault(work: Any, *given: Any) -> Iterator[PipelineError]:
    try:
        work(*given)
    except PipelineError as error:
        yield error


def collect_findings(root: str | Place, deep: bool, progress: Any) -> dict[str, Any]:
    """Collect everything that `verify` reports: 'whole', and in 'bad' one line for each fault."""
    bad = list(find_faults(root))
    found: dict[str, Any] = {"cache": str(root)} if bad else count_files(root)
    if deep and not bad:
        from pipeline.integrity.decode_all import find_decode_faults

        bad = list(find_decode_faults(root, progress))
        found["decoded"] = sum(Cache(root).manifest(number)["samples"] for number in Cache(root).passes())
    return {**found, "whole": not bad, "bad": [str(error) for error in bad]}
