"""Estimate the size and the duration of a complete cache from a trial."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.codecs.packing import positions
from pipeline.data.images import Images
from pipeline.data.shard_planning import plan_views
from pipeline.data.views import Views
from pipeline.mmdet_compat.registry import Config
from pipeline.sections import Sections
from pipeline.tools.forecast.training import Training
from pipeline.tools.forecast.trial import Trial

CODED = ("features", "scores", "frs", "boxes")
DOUBT = 0.05  # relative sd of the size if the trial calibrates on fewer views than stage 1 (docs/results/face.md)
FEW, FEW_DOUBT = 16, 0.15  # the same if it calibrates on fewer views than FEW


def count_positions(
    images: Images, views: Views, passes: int, layout: dict[str, int], trial: Trial, exact: bool
) -> tuple[float, int]:
    """Count FPN positions and shards of the complete cache. Unless `exact`, extrapolate the positions of the trial."""
    count = len(images) * passes
    if not exact:
        return float(trial.positions.mean()) * count, math.ceil(count / layout["shard_samples"])
    shards = [shard for number in range(passes) for shard in plan_views(images, views, number, layout)]
    return sum(positions(trial.teacher.levels(pad)) for shard in shards for _, _, pad in shard.samples), len(shards)


def estimate_size(trial: Trial, places: float, shards: int, count: int) -> dict[str, Any]:
    """Estimate the bytes of the complete cache, with 95% intervals, from the trial's bytes per position."""
    doubt = DOUBT if trial.calibrated_on >= FEW else FEW_DOUBT
    doubt = doubt if trial.calibrated_on < trial.calibration_views else 0.0
    rows = {}
    for name, values in trial.bytes_by_view.items():
        rows[name] = interval(values, trial.positions, places, count, doubt if name in CODED else 0.0)
    total, low, high = interval(sum(trial.bytes_by_view.values()), trial.positions, places, count, doubt)
    heads = trial.head * shards
    mean, lower, upper = rows["overhead"]
    rows["overhead"] = (mean + heads, lower + heads, upper + heads)
    return {
        "bytes": round(total + heads),
        "bytes_low": round(low + heads),
        "bytes_high": round(high + heads),
        "bytes_by_tensor": {name: [round(x) for x in row] for name, row in rows.items()},
        "bytes_per_view": round(float(total + heads) / count, 1),
        "calibrated_on": trial.calibrated_on,
    }


def interval(
    sizes: Any, places: np.ndarray, all_places: float, count: int, doubt: float = 0.0
) -> tuple[float, float, float]:
    """Estimate a sum over `count` views from a sample, by its ratio to the positions. Return (mean, low, high) at 95%.

    sizes, places: bytes and positions of the sampled views. doubt: a further relative standard deviation.
    """
    n, ratio = len(sizes), sizes.sum() / places.sum()
    residuals = sizes - ratio * places
    deviation = math.sqrt(float((residuals**2).sum()) / max(1, n - 1))
    student = 1.96 + 2.4 / max(1, n - 1)  # close to Student's t for 5 or more views
    error = count * deviation / math.sqrt(n) * math.sqrt(max(0.0, 1 - n / count))
    half = student * math.hypot(error, doubt * ratio * all_places)
    return ratio * all_places, max(0.0, ratio * all_places - half), ratio * all_places + half


def estimate_hours(
    trial: Trial, training: Training | None, found: dict[str, Any], sections: Sections, cfg: Config
) -> dict[str, Any]:
    """Estimate the seconds of both stages, and the epochs after which the cache saves time.

    Without `training`, there is nothing about stage 2.
    """
    count, images = found["distinct_views"], found["images_per_epoch"]
    by_view = (trial.calibration_seconds - trial.training_seconds) / trial.calibrated_on
    calibration = by_view * trial.calibration_views + trial.training_seconds
    gate = sections.teacher.gate_images * trial.teacher_seconds
    stage1 = count / trial.views_per_second + calibration + gate
    schedule = cfg.get("train_cfg") or {}
    steps = schedule.get("max_iters", 0) * cfg.train_dataloader.batch_size  # in images
    epochs = int(schedule.get("max_epochs") or math.ceil(steps / images) or 1)
    hours = {
        "stage1_seconds": round(stage1, 1),
        "stage1_views_per_second": round(trial.views_per_second, 2),
        "write_mb_per_second_needed": trial.views_per_second * found["bytes_per_view"] / 1e6,
        "epochs": epochs,
    }
    if training is None:
        return hours
    files = found.get("stored_images", {}).get("bytes", 0) / max(1, found["images"])  # of an image
    cached = epochs * images / training.images_per_second
    saved = images * training.live_seconds  # seconds per epoch
    return {
        **hours,
        "stage2_images_per_second": round(training.images_per_second, 2),
        "stage2_read_mb_per_second": training.images_per_second * (found["bytes_per_view"] + files) / 1e6,
        "stage2_seconds": round(cached, 1),
        "live_seconds": round(cached + epochs * saved, 1),
        "break_even_epochs": round(stage1 / max(saved, 1e-9), 2),
    }
