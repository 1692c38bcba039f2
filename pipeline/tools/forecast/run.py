"""Forecast what a cache of a config takes: bytes, hours, disk, and after how many epochs it has paid."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.codecs.packing import positions
from pipeline.config import Sections
from pipeline.data.images import Images
from pipeline.data.shard_planning import expected_passes, layout_of, plan_views
from pipeline.data.views import Views
from pipeline.mmdet_compat.registry import Config
from pipeline.progress import Log, Progress
from pipeline.stage1.job import open_job
from pipeline.storage.urls import require_writable
from pipeline.tools.forecast.disk import free_bytes, measure_write_rate, nearest_folder
from pipeline.tools.forecast.training import Training, measure_training
from pipeline.tools.forecast.trial import Trial, run_trial

SAMPLES, SECONDS = 96, 60.0
SPARE = 1.05  # room on the disk in units of the upper bound
CODED = ("features", "scores", "frs")
DOUBT = 0.05  # relative sd of the size where fewer views calibrate than stage 1 will take (docs/results/face.md)
TRAINING_SHARE = 0.2  # of the time that the whole forecast may take


def forecast(
    cfg: Config, sections: Sections, log: Log, progress: Progress, samples: int = SAMPLES, seconds: float = SECONDS
) -> dict[str, Any]:
    """Measure on `samples` images in about `seconds`; a slow teacher takes longer. JSON value. Raises PipelineError."""
    begun = time.perf_counter()
    require_writable(sections.cache.place())
    job = open_job(cfg, sections, log, progress)
    images, views, teacher = job.images, job.views, job.teacher
    passes = len(expected_passes(sections, views))
    remote = "://" in sections.cache.dir
    folder = nearest_folder(Path("." if remote else sections.cache.dir).parent)
    with run_trial(job, folder, samples, seconds - (time.perf_counter() - begun)) as made:
        training = measure_training(cfg, sections, images, views, made, seconds * TRAINING_SHARE)
        places, shards = count_positions(images, views, passes, layout_of(sections), made)
        found = {
            "cache": sections.cache.dir,
            "device": str(teacher.device),
            "views": views.recognised,
            "images": len(images),
            "passes": passes,
            "distinct_views": len(images) * passes,
            "sampled_views": len(made.positions),
        }
        found |= estimate_size(made, places, shards, len(images) * passes)
        found |= estimate_hours(made, training, found, sections, cfg)
    if not remote:
        found |= {
            "free_bytes": free_bytes(folder) + count_existing_bytes(Path(sections.cache.dir)),
            "write_mb_per_second_available": measure_write_rate(folder) / 1e6,
        }
    found["warnings"] = list_warnings(found)
    found["took_seconds"] = round(time.perf_counter() - begun, 1)
    return found


def count_existing_bytes(root: Path) -> int:
    """Count the bytes that an older cache in this place has already."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def count_positions(
    images: Images, views: Views, passes: int, layout: dict[str, int], made: Trial
) -> tuple[float, int]:
    """Count FPN positions and shards of the whole cache: as stage 1 plans it, or as in the sample where views are drawn."""
    count = len(images) * passes
    if not views.finite:
        return float(made.positions.mean()) * count, math.ceil(count / layout["shard_samples"])
    shards = [shard for number in range(passes) for shard in plan_views(images, views, number, layout)]
    return sum(positions(made.teacher.levels(pad)) for shard in shards for _, _, pad in shard.samples), len(shards)


def estimate_size(made: Trial, places: float, shards: int, count: int) -> dict[str, Any]:
    """Estimate the bytes of the whole cache, each with its 95% interval: the sample's bytes a position, times all positions."""
    short = DOUBT if made.calibrated_on < made.calibration_views else 0.0
    rows = {}
    for name, values in made.bytes_by_view.items():
        rows[name] = interval(values, made.positions, places, count, short if name in CODED else 0.0)
    total, low, high = interval(sum(made.bytes_by_view.values()), made.positions, places, count, short)
    heads = made.head * shards
    mean, below, above = rows["overhead"]
    rows["overhead"] = (mean + heads, below + heads, above + heads)
    return {
        "bytes": round(total + heads),
        "bytes_low": round(low + heads),
        "bytes_high": round(high + heads),
        "bytes_by_tensor": {name: [round(x) for x in row] for name, row in rows.items()},
        "bytes_per_view": round(float(total + heads) / count, 1),
        "calibrated_on": made.calibrated_on,
    }


def interval(
    sizes: Any, places: np.ndarray, all_places: float, count: int, doubt: float = 0.0
) -> tuple[float, float, float]:
    """Ratio estimate of a sum over `count` views from a sample: (mean, low, high) of its 95% interval.

    `doubt`: a further relative standard deviation.
    """
    n, ratio = len(sizes), sizes.sum() / places.sum()
    left = sizes - ratio * places
    deviation = math.sqrt(float((left**2).sum()) / max(1, n - 1))
    student = 1.96 + 2.4 / max(1, n - 1)  # close to Student's t from 5 views on
    error = count * deviation / math.sqrt(n) * math.sqrt(max(0.0, 1 - n / count))
    half = student * math.hypot(error, doubt * ratio * all_places)
    return ratio * all_places, max(0.0, ratio * all_places - half), ratio * all_places + half


def estimate_hours(
    made: Trial, training: Training, found: dict[str, Any], sections: Sections, cfg: Config
) -> dict[str, Any]:
    """Estimate the seconds of both stages, and when the first one has paid for itself."""
    count, images = found["distinct_views"], found["images"]
    calibration = made.calibration_seconds * made.calibration_views / made.calibrated_on
    gate = sections.teacher.gate_images * made.teacher_seconds
    stage1 = count / made.views_per_second + calibration + gate
    epochs = int((cfg.get("train_cfg") or {}).get("max_epochs") or 1)
    cached = epochs * images / training.images_per_second
    saved = images * training.live_seconds  # by an epoch
    return {
        "stage1_seconds": round(stage1, 1),
        "stage1_views_per_second": round(made.views_per_second, 2),
        "write_mb_per_second_needed": made.views_per_second * found["bytes_per_view"] / 1e6,
        "stage2_images_per_second": round(training.images_per_second, 2),
        "stage2_read_mb_per_second": training.images_per_second * found["bytes_per_view"] / 1e6,
        "stage2_seconds": round(cached, 1),
        "live_seconds": round(cached + epochs * saved, 1),
        "epochs": epochs,
        "break_even_epochs": round(stage1 / max(saved, 1e-9), 2),
    }


def list_warnings(found: dict[str, Any]) -> list[str]:
    """Say what speaks against making this cache here."""
    lines = []
    if "free_bytes" in found:
        if not fits(found):
            lines.append(
                f"disk: {found['free_bytes'] / 1e9:.2f} GB free, the cache may need {found['bytes_high'] / 1e9:.2f} GB"
            )
        if found["write_mb_per_second_available"] < found["write_mb_per_second_needed"]:
            lines.append("disk: writes slower than the teacher works; stage 1 will wait for it")
    if found["break_even_epochs"] > found["epochs"]:
        lines.append(
            f"break-even after {found['break_even_epochs']:.1f} epochs, the schedule has {found['epochs']}: for one "
            "student alone the live teacher is quicker"
        )
    return lines


def fits(found: dict[str, Any]) -> bool:
    """Return whether the disk has room for the upper bound."""
    return "free_bytes" not in found or found["free_bytes"] > SPARE * found["bytes_high"]
