"""Forecast the cache of a config: bytes, hours, disk space, and the epochs after which it saves time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.calibration.sample import warn_if_few
from pipeline.data.images import Images
from pipeline.data.shard_planning import expected_passes, layout_of
from pipeline.data.views import Views
from pipeline.mmdet_compat.registry import Config
from pipeline.progress import MANY_IMAGES, Log, Progress
from pipeline.sections import Sections
from pipeline.stage1.job import open_job
from pipeline.stage2.loader import read_batch_size, read_loader
from pipeline.storage.urls import require_writable
from pipeline.tools.forecast.clock import Clock
from pipeline.tools.forecast.disk import free_bytes, measure_write_rate, nearest_folder
from pipeline.tools.forecast.estimate import count_positions, estimate_hours, estimate_size
from pipeline.tools.forecast.image_files import add_image_files
from pipeline.tools.forecast.training import Training, measure_training
from pipeline.tools.forecast.trial import Trial, run_trial

SAMPLES, SECONDS = 96, 60.0
SPARE = 1.05  # required free space, as a multiple of the upper bound of the size
TRAINING_SHARE = 0.2  # share of the forecast's time
STEP_COST, FEWEST_STEPS = 3, 2  # of training: a step's time an image, as a multiple of the teacher's, and steps


def forecast(
    cfg: Config,
    sections: Sections,
    log: Log,
    progress: Progress,
    samples: int = SAMPLES,
    seconds: float = SECONDS,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Forecast from `samples` images in about `seconds`. Return a dict for JSON.

    Each part gets a share of the time. `left_out` in the result says what was skipped or cut short. now: a clock.
    """
    clock = Clock(seconds, now)
    require_writable(sections.cache.place())
    read_batch_size(cfg.train_dataloader)
    read_loader(cfg.train_dataloader)
    job = open_job(cfg, sections, log, progress, keep=False)  # a forecast leaves no files
    images, views, teacher = job.images, job.views, job.teacher
    passes = len(expected_passes(sections, views))
    remote = "://" in sections.cache.dir
    folder = nearest_folder(Path("." if remote else sections.cache.dir).parent)
    with run_trial(job, folder, samples, clock) as trial:
        training = train_in_time(cfg, sections, images, views, trial, clock, log)
        exact = views.finite and (len(images) <= MANY_IMAGES or clock.left > 0)
        if views.finite and len(images) > MANY_IMAGES:
            if exact:
                log(f"plan     sizes of the views of {len(images)} images in {passes} passes")
            else:
                clock.leave_out("sizes of views that were not sampled")
        places, shards = count_positions(images, views, passes, layout_of(sections), trial, exact)
        found = {
            "cache": sections.cache.dir,
            "device": str(teacher.device),
            "views": views.recognised,
            "images": len(images),
            "images_per_epoch": len(images) * images.repeats,
            "passes": passes,
            "distinct_views": len(images) * passes,
            "sampled_views": len(trial.positions),
        }
        found |= estimate_size(trial, places, shards, len(images) * passes)
        if sections.cache.images:
            found |= add_image_files(found, images, sections.views.seed)
        found |= estimate_hours(trial, training, found, sections, cfg)
    if not remote:
        found |= {
            "free_bytes": free_bytes(folder) + count_existing_bytes(Path(sections.cache.dir)),
            "write_mb_per_second_available": measure_write_rate(folder, max(1.0, clock.left), now) / 1e6,
        }
    few = warn_if_few(min(sections.cache.calibration_views, len(images))) if sections.cache.codec.fitted else None
    found["warnings"] = [*list_warnings(found), *([few] if few else [])]
    found["left_out"] = list(clock.left_out)
    found["took_seconds"] = round(now() - clock.begun, 1)
    return found


def train_in_time(
    cfg: Config, sections: Sections, images: Images, views: Views, trial: Trial, clock: Clock, log: Log
) -> Training | None:
    """Measure the speed of training in a share of the forecast's time; None if not even a few steps fit into it."""
    share = min(clock.left, clock.seconds * TRAINING_SHARE)
    batch_size = read_batch_size(cfg.train_dataloader)
    if STEP_COST * batch_size * trial.teacher_seconds * FEWEST_STEPS > clock.left:
        clock.leave_out("the speed of stage 2 and the live teacher's cost")
        return None
    log(f"student  training for up to {share:.0f} s")
    return measure_training(cfg, sections, images, views, trial, share, clock.now)


def count_existing_bytes(root: Path) -> int:
    """Count the bytes of an older cache in this folder."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def list_warnings(found: dict[str, Any]) -> list[str]:
    """List the reasons not to make this cache here."""
    lines = []
    if "free_bytes" in found:
        if not fits_on_disk(found):
            lines.append(
                f"disk: {found['free_bytes'] / 1e9:.2f} GB free, the cache may need {found['bytes_high'] / 1e9:.2f} GB"
            )
        if found["write_mb_per_second_available"] < found["write_mb_per_second_needed"]:
            lines.append("disk: writes slower than the teacher computes; stage 1 will wait for the disk")
    if found.get("break_even_epochs", 0.0) > found["epochs"]:
        lines.append(
            f"break-even after {found['break_even_epochs']:.1f} epochs, but the schedule has {found['epochs']}: for a "
            "single student the live teacher is quicker"
        )
    return lines


def fits_on_disk(found: dict[str, Any]) -> bool:
    """Return whether the upper bound of the size fits on the disk."""
    return "free_bytes" not in found or found["free_bytes"] > SPARE * found["bytes_high"]
