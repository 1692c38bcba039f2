"""Is every byte of a cache the one that was written, and does it decode? Needs neither mmdet nor a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from pipeline.cache.cache import Cache, pass_folder
from pipeline.cache.fields import GATE, QUARANTINE, read_fields
from pipeline.cache.manifest import check_pass
from pipeline.cache.place import Place
from pipeline.codec import load_codec
from pipeline.codec.base import Codec, stack
from pipeline.errors import CacheError, CorruptCache, PipelineError
from pipeline.records import LevelShapes, SampleRef

TOGETHER = 8  # samples that are decoded at a time


class Progress(Protocol):
    def start(self, title: str, total: int | None) -> None: ...
    def advance(self, samples: int, size: int) -> None: ...
    def stop(self) -> None: ...


def verify(root: str | Place) -> dict[str, Any]:
    """Read every file of a cache and compare its digest. Raises the PipelineError of the first that differs."""
    for fault in faults(root):
        raise fault
    cache = Cache(root)
    manifests = [cache.manifest(number) for number in cache.passes()]
    files = len(cache.codec_manifest()["files"]) + sum(len(m["files"]) for m in manifests)
    return {"cache": str(root), "files": files, "bytes": sum(m["bytes"] for m in manifests)}


def faults(root: str | Place) -> Iterator[PipelineError]:
    """What is wrong with a cache, file by file."""
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
    yield from _fault(lambda: load_codec(cache.root, cache.codec_manifest()))
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


def deep_faults(root: str | Place, progress: Progress) -> Iterator[PipelineError]:
    """Decode every sample; what cannot be. For a cache without `faults`."""
    cache = Cache(root)
    codec = load_codec(cache.root, cache.codec_manifest())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for number in cache.passes():
        try:
            shards = cache.references(number)
        except PipelineError as error:
            yield error
            continue
        progress.start(f"pass {number + 1}", sum(map(len, shards)))
        for n, refs in enumerate(shards):
            yield from _undecodable(cache, number, n, refs, codec, device)
            progress.advance(len(refs), 0)
        progress.stop()


def _undecodable(
    cache: Cache, number: int, shard: int, refs: list[SampleRef], codec: Codec, device: torch.device
) -> Iterator[PipelineError]:
    try:
        reader = cache.shard(number, shard)
        held = [(extent.image_id, extent.view) for extent in reader.sidecar.samples]
        if held != [(ref.image_id, ref.view) for ref in refs]:
            raise CorruptCache(f"{reader.path}: holds other views than its pass's plan.json")
    except PipelineError as error:
        yield error
        return
    for start in range(0, len(refs), TOGETHER):
        samples: list[Any] = []
        levels: list[LevelShapes] = []
        for ref in refs[start : start + TOGETHER]:
            try:
                stored = reader.read(ref.index, codec.check_sample)
                record, grids = reader.record(ref.index, reader.chunks(ref.index))
                if record.pad_shape != ref.pad_shape:
                    raise CorruptCache(f"{reader.path}: sample {ref.index} is not of the padded shape planned for it")
            except PipelineError as error:
                yield error
                continue
            samples.append({name: array for name, array in stored.items() if name not in ("record", "thumbnail")})
            levels.append(grids)
        if samples:
            output = codec.decode(stack(samples, levels).to(device))
            unsound = output.unsound()
            if unsound is not None:
                yield CorruptCache(f"{reader.path}: samples {start}-{start + TOGETHER - 1} decode to NaN or infinity")


def findings(root: str | Place, deep: bool, progress: Progress) -> dict[str, Any]:
    """Everything that `verify` tells: 'whole', and in 'bad' one line for each fault."""
    bad = list(faults(root))
    found: dict[str, Any] = {"cache": str(root)} if bad else verify(root)
    if deep and not bad:
        bad = list(deep_faults(root, progress))
        found["decoded"] = sum(Cache(root).manifest(number)["samples"] for number in Cache(root).passes())
    return {**found, "whole": not bad, "bad": [str(error) for error in bad]}
