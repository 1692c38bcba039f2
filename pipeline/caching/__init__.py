"""Stage 1: run the teacher once over every view and leave a verified cache. Safe to stop and to start again."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

from pipeline.cache.cache import FORMAT, VERSION, Cache, differences
from pipeline.cache.fields import GATE, read_fields
from pipeline.cache.files import digest, read_json, sha256_file, write_json, write_report
from pipeline.cache.lock import locked
from pipeline.cache.place import Place, require_writable
from pipeline.caching.calibrate import calibrated
from pipeline.caching.job import Job
from pipeline.caching.passes import cache_pass
from pipeline.caching.ranks import Ranks
from pipeline.codec.base import Codec
from pipeline.config import Sections
from pipeline.errors import CacheError, StaleCache
from pipeline.mm import Config, plain
from pipeline.planning import expected_passes, images_and_views, layout_of
from pipeline.progress import Log, Progress
from pipeline.recipe import make_recipe
from pipeline.teacher import Teacher, find_teacher, gate, own_device
from pipeline.teacher.model import precision


def cache_teacher(cfg: Config, sections: Sections, log: Log, progress: Progress) -> dict[str, Any]:
    """Make, complete or grow the cache of a config. Returns its summary. Raises PipelineError.

    Under torchrun the ranks share the shards; gate, calibration, plans and manifests are the leader's.
    """
    begun = time.perf_counter()
    require_writable(sections.cache.place())
    job = open_job(cfg, sections, log, progress)
    numbers = expected_passes(sections, job.views)
    with locked(job.root) if job.ranks.leads else nullcontext():
        codec = agreed_codec(cfg, job)
        computed = sum(cache_pass(job, codec, number) for number in numbers)
        summary = summarise(job.root, computed, time.perf_counter() - begun)
        if job.ranks.leads:
            write_report(job.root / "summary.json", summary)
        job.ranks.leave()
    return summary


def open_job(cfg: Config, sections: Sections, log: Log, progress: Progress) -> Job:
    """Check and build everything that stage 1 works with; nothing is written yet."""
    root, ranks = sections.cache.place(), Ranks()
    log = ranks.log(log)
    images, views = images_and_views(cfg, sections)
    spec = find_teacher(sections.teacher)
    recipe = make_recipe(sections, images, views, spec)
    log(f"images   {len(images)} of {images.total} in {images.ann_file} (filter_cfg {plain(images.filter_cfg)})")
    log(f"views    {views.recognised}")
    device = own_device()
    teacher = Teacher(spec, images.classes, device, sections.teacher.tf32)
    weights = sha256_file(spec.weights())
    on = f"{device}" if ranks.world == 1 else f"{ranks.world} ranks"
    log(f"teacher  {spec.label}, weights {weights[:12]}, on {on}")
    plan = make_plan(sections, recipe, weights)
    expected_passes(sections, views)
    check_existing(root, plan)
    return Job(root, sections, images, views, teacher, plan, log, progress, ranks)


def agreed_codec(cfg: Config, job: Job) -> Codec:
    """The codec that all ranks use: gate and calibration are the leader's, the others read what it wrote."""
    if job.ranks.leads:
        pass_gate(cfg, job)
        calibrated(job)
    job.ranks.join()
    job.ranks.share_lock()
    job.progress = job.ranks.progress(job.progress)
    return calibrated(job)


def pass_gate(cfg: Config, job: Job) -> None:
    """Nothing is cached of a teacher that does not detect. Writes plan.json, the cache's identity, behind it."""
    root, section = job.root, job.sections.teacher
    if not ((root / "plan.json").exists() and (root / "gate.json").exists()):
        with precision(section.tf32):
            write_json(root / "gate.json", gate.measure(job.teacher.detector, cfg, section.gate_images))
    measured = read_fields(root / "gate.json", GATE)  # also of a cache that exists: min_map may have been raised
    job.log(f"gate     mAP {measured['mAP']:.3f} on {measured['images']} val images")
    gate.require(measured, section.min_map)
    if not (root / "plan.json").exists():
        write_json(root / "plan.json", job.plan)


def make_plan(sections: Sections, recipe: dict[str, Any], weights: str) -> dict[str, Any]:
    """plan.json: the identity of every shard. View count and image list are no part of it, so that a cache can grow."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "recipe": recipe,
        "recipe_digest": digest(recipe),
        "teacher_sha256": weights,
        "layout": layout_of(sections),
    }


def check_existing(root: Place, plan: dict[str, Any], advice: str = "use another cache.dir") -> None:
    """Never mix two teachers, data sets or codecs in one folder."""
    if not (root / "plan.json").exists():
        return
    lines = differences(read_json(root / "plan.json"), plan)
    lines = [line for line in lines if not line.startswith("recipe_digest")]
    if lines:
        raise StaleCache(f"{root}: holds another cache: {lines[0]}; {advice}")


def summarise(root: Place, computed: int, seconds: float) -> dict[str, Any]:
    """summary.json: what the cache holds and what it cost."""
    cache = Cache(root)
    manifests = [cache.manifest(number) for number in cache.passes()]
    if not manifests:
        raise CacheError(f"{root}: no pass was completed")
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
        "views_computed": computed,
        "quarantined": sum(len(m["quarantine"]) for m in manifests),
        "seconds": round(seconds, 2),
        "codec": cache.recipe["codec"]["type"],
        "recipe": cache.plan["recipe_digest"],
        "content": cache.content(),
    }
