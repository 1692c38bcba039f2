"""Run stage 1: gate, calibration, and all passes. It can be interrupted and resumed at any time."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from pipeline.cache.canonical import write_json, write_report
from pipeline.cache.inspect import summarise
from pipeline.cache.plain import locked_cache
from pipeline.cache.schema import GATE, read_fields
from pipeline.calibration.calibrate import load_or_calibrate_codec
from pipeline.codecs.base import Codec
from pipeline.data.shard_planning import expected_passes
from pipeline.data.validation import check_validation
from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import Config
from pipeline.precision import precision
from pipeline.progress import Log, Progress
from pipeline.sections import Sections
from pipeline.stage1.images import store_images
from pipeline.stage1.job import Job, open_job
from pipeline.stage1.passes import cache_pass
from pipeline.storage.base import Lock
from pipeline.storage.lock import announce_lock
from pipeline.storage.urls import require_writable
from pipeline.teacher import gate
from pipeline.teacher.backbones import FeatureExtractor


def cache_teacher(cfg: Config, sections: Sections, log: Log, progress: Progress) -> dict[str, Any]:
    """Make, complete or grow the cache of a config. Return its summary. Raise PipelineError.

    Under torchrun the ranks share the shards. The leader does gate, calibration, plans and manifests.
    """
    begun = time.perf_counter()
    require_writable(sections.cache.place())
    job = open_job(cfg, sections, log, progress)
    numbers = expected_passes(sections, job.views)
    if job.ranks.is_leader:
        announce_lock(job.root, job.log)
    with locked_cache(job.root) if job.ranks.is_leader else nullcontext() as lock:
        job, codec = prepare_codec(cfg, job, lock)
        computed = sum(cache_pass(job, codec, number) for number in numbers)
        store_images(job)
        summary = summarise(job.root, computed, time.perf_counter() - begun)
        if job.ranks.is_leader:
            write_report(job.root / "summary.json", summary)
        job.ranks.leave()
    return summary


def prepare_codec(cfg: Config, job: Job, lock: Lock | None) -> tuple[Job, Codec]:
    """Run the gate and the calibration on the leader, and read the codec on the other ranks.

    lock: the leader's lock, None on other ranks. Return the job with the root for this rank's writes, and the codec.
    """
    if lock is not None:
        job = replace(job, root=lock.place)
    if job.ranks.is_leader:
        run_gate(cfg, job)
        load_or_calibrate_codec(job)
    job.ranks.join()
    job = replace(job, root=job.ranks.share_lock(job.root, lock))
    return job, load_or_calibrate_codec(job)


def measure_teacher(cfg: Config, job: Job) -> dict[str, float]:
    """Measure the teacher's mAP on the val set. A backbone predicts no boxes and is measured on 0 images."""
    section = job.sections.teacher
    if isinstance(job.teacher.detector, FeatureExtractor):
        if section.min_map > 0:
            raise ConfigError(f"teacher.min_map={section.min_map}: a backbone predicts no boxes, set it to 0")
        return {"mAP": 0.0, "AP50": 0.0, "images": 0}
    job.log(f"gate     measuring the mAP on up to {section.gate_images} val images")
    check_validation(cfg, job.images.classes)
    return gate.measure(job.teacher.detector, cfg, section.gate_images)


def run_gate(cfg: Config, job: Job) -> None:
    """Measure the teacher's mAP once, and write plan.json. Raise TeacherError where the mAP is below `min_map`."""
    root, section = job.root, job.sections.teacher
    if not ((root / "plan.json").exists() and (root / "gate.json").exists()):
        with precision(section.tf32):
            write_json(root / "gate.json", measure_teacher(cfg, job))
    measured = read_fields(root / "gate.json", GATE)  # also for an existing cache, as min_map may have changed
    found = f"mAP {measured['mAP']:.3f} on {measured['images']} val images"
    job.log(f"gate     {found if measured['images'] else 'not measured, a backbone predicts no boxes'}")
    gate.require(measured, section.min_map)
    if not (root / "plan.json").exists():
        write_json(root / "plan.json", job.plan)
