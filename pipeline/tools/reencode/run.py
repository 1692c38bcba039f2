"""Make a cache of another quality or profile without running the teacher over the data set again.

From a lossless source, the result is byte for byte that of stage 1, given the same device, precision and number of
threads per process. From a lossy source, the errors of both codecs add up, and the calibration measures their sum.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

from pipeline.budget import BUDGET
from pipeline.cache.cache import FORMAT, Cache
from pipeline.cache.canonical import digest, write_json, write_report
from pipeline.cache.completeness import find_missing_passes
from pipeline.cache.existing import find_codec_type, find_version
from pipeline.cache.image_shards import FOLDER, load_image_manifest, write_image_manifest
from pipeline.cache.inspect import summarise
from pipeline.cache.layout import pass_folder, shard_name
from pipeline.cache.manifest import shard_done, write_manifest
from pipeline.cache.plain import locked_cache
from pipeline.cache.reader import ShardReader
from pipeline.cache.schema import GATE, PASS_PLAN, read_fields
from pipeline.codecs.base import Codec
from pipeline.codecs.group import open_codec
from pipeline.codecs.registry import DEFAULT, read_options
from pipeline.errors import ConfigError
from pipeline.integrity.verify import verify
from pipeline.progress import Log, Progress
from pipeline.stage1.job import check_existing
from pipeline.storage.files import checksum, copy_file, discard
from pipeline.storage.lock import announce_lock
from pipeline.storage.place import Place
from pipeline.storage.urls import place, require_writable
from pipeline.tools.reencode.calibration import calibrate_with, copy_codec, require_same_recipe
from pipeline.tools.reencode.workers import recode_shards


def reencode(
    source: str,
    target: str,
    codec: dict[str, Any],
    config: str | None,
    options: dict[str, Any],
    like: str | None,
    jobs: int | None,
    log: Log,
    progress: Progress,
) -> dict[str, Any]:
    """Make or complete the cache `target`. Return its summary.

    codec: as `cache.codec` of a config; without a `type`, that of `like`, of `target` or the default. config, options:
    of the source, to calibrate the codec. like: a cache whose codec is copied instead. jobs: worker processes. Raise
    ConfigError where both config and like are missing, and the errors of stage 1.
    """
    begun, old, root = time.perf_counter(), Cache(source), place(target)
    require_writable(root)
    plan = _plan_target(old, root, codec, like)
    check_existing(root, plan, "use another target folder")
    if not (root / "codec.json").exists():
        # Checked before plan.json is written: an error must not leave the folder of another cache.
        _require_codec_source(root, plan, config, like)
    announce_lock(root, log)
    with locked_cache(root) as lock:
        root = lock.place
        write_json(root / "gate.json", read_fields(old.root / "gate.json", GATE))
        write_json(root / "plan.json", plan)
        if not (root / "codec.json").exists():
            if like is not None:
                copy_codec(Cache(like), plan, root)
            elif config is not None:
                calibrate_with(config, options, old, plan, root, log, progress)
        computed = sum(recode_pass(old, root, number, jobs, progress) for number in old.passes())
        copy_images(old, root)
        checked = verify(root, len(old.passes()), log)
        log(f"verified {checked['files']} files, {checked['bytes'] / 1e6:.1f} MB")
        summary = summarise(root, computed, time.perf_counter() - begun)
        write_report(root / "summary.json", summary)
    return summary


def _plan_target(old: Cache, root: Place, codec: dict[str, Any], like: str | None) -> dict[str, Any]:
    """Return plan.json of the new cache. Raise where the source lacks passes, or class scores that are needed."""
    incomplete = find_missing_passes(old)
    if incomplete is not None:  # the new cache would be complete without these passes
        raise incomplete
    copied = Cache(like).recipe["codec"] if like else None
    kind = copied["type"] if copied else find_codec_type(root)
    codec = {"type": kind or DEFAULT, **codec}
    settings = copied if copied and codec == {"type": kind} else read_options(codec).to_json()
    if settings.get("scores", True) and not old.recipe["codec"].get("scores", True):
        raise ConfigError(f"{old.root}: the source has no class scores, the new cache needs them; add --no-scores")
    if settings.get("boxes") and not old.recipe["codec"].get("boxes"):
        raise ConfigError(
            f"{old.root}: the source has no box distributions, the new cache needs them; leave out --boxes, or copy "
            "another codec"
        )
    version = find_version(root)
    recipe = {**old.recipe, "codec": settings, "format": [FORMAT, version]}
    return {**old.plan, "version": version, "recipe": recipe, "recipe_digest": digest(recipe)}


def _require_codec_source(root: Place, plan: dict[str, Any], config: str | None, like: str | None) -> None:
    """Raise ConfigError without a source of the codec, StaleCache where `like` has another recipe or teacher."""
    if config is None and like is None:
        raise ConfigError(
            f"{root}: expected --config C (calibrates the codec with the teacher's weights) or --like CACHE (copies "
            "the codec of a cache of the same recipe), found neither"
        )
    if like is not None:
        require_same_recipe(Cache(like), plan)


def recode_pass(old: Cache, root: Place, number: int, jobs: int | None, progress: Progress) -> int:
    """Write the missing shards of one pass. Return the number of their views."""
    folder, manifest, new = pass_folder(root, number), old.manifest(number), Cache(root)
    quarantine, shards = old.quarantine(number), old.shard_plans(number)
    planned = read_fields(pass_folder(old.root, number) / "plan.json", PASS_PLAN)
    write_json(folder / "plan.json", planned, BUDGET.plan_values)
    if quarantine.images:
        quarantine.save(folder)
    missing = [
        (number, n, shard)
        for n, shard in enumerate(shards)
        if not shard_done(root, number, n, new.plan_digest, new.codec_digest, [s[:2] for s in shard.samples])
    ]
    if missing:
        discard(folder / "manifest.json")
        progress.start(f"pass {number}", sum(len(shard.samples) for _, _, shard in missing))
        try:
            for views, size in recode_shards(old.root, root, missing, jobs):
                progress.advance(views, size)
        finally:
            progress.stop()
    if not (folder / "manifest.json").exists():
        raw, environment = count_fp16_bytes(open_codec(new), folder, len(shards)), manifest["environment"]
        write_manifest(root, number, new.plan_digest, len(shards), raw, quarantine.rows, environment, new.version)
    return sum(len(shard.samples) for _, _, shard in missing)


def copy_images(old: Cache, root: Place) -> None:
    """Copy the stored image files of a cache, if it has any. They do not depend on the codec."""
    manifest = old.image_manifest()
    if manifest is None or load_image_manifest(root) is not None:
        return
    for name, entry in manifest["files"].items():
        path = root / FOLDER / name
        if not path.exists() or checksum(path, entry["bytes"]) != entry:
            copy_file(old.root / FOLDER / name, path, entry["sha256"])
    write_image_manifest(root, Cache(root).plan_digest)


def count_fp16_bytes(codec: Codec, folder: Place, shards: int) -> int:
    """Return the bytes of the tensors that these shards of a pass code, as fp16. The new codec may store fewer."""
    total = 0
    for number in range(shards):
        with closing(ShardReader(folder / shard_name(number))) as reader:
            total += sum(codec.fp16_bytes(reader.levels(index)) for index in range(len(reader)))
    return total
