"""Measure the speed of training from the trial's cache on a few complete steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from mmengine.optim import build_optim_wrapper

from pipeline.codecs.base import Codec
from pipeline.data.images import Images
from pipeline.data.stream import Stream, StreamSource, stream_loader
from pipeline.data.views import Views
from pipeline.mmdet_compat.registry import MODELS, Config, build, config_errors
from pipeline.sections import Sections
from pipeline.stage2.compatibility import TeacherLayout
from pipeline.stage2.distiller import Distiller
from pipeline.stage2.loader import read_batch_size, read_loader
from pipeline.stage2.teacher_data import first_grids
from pipeline.stage2.teacher_source import CachedTeacher
from pipeline.teacher.heads import class_head
from pipeline.teacher.model import own_device
from pipeline.teacher.priors import priors_of
from pipeline.tools.forecast.trial import Trial

UNCOUNTED, COUNTED = 2, 10  # steps; the first ones allocate memory and start workers


@dataclass
class Training:
    """Speed of one process: images per second from the cache, and the seconds per image that a live teacher adds."""

    images_per_second: float
    live_seconds: float


def measure_training(
    cfg: Config,
    sections: Sections,
    images: Images,
    views: Views,
    trial: Trial,
    seconds: float,
    now: Callable[[], float] = time.perf_counter,
) -> Training:
    """Run up to UNCOUNTED + COUNTED steps, for about `seconds`, on an untrained student: the weights do not matter."""
    codec: Codec = trial.codec
    batch_size = read_batch_size(cfg.train_dataloader)
    shards = trial.cache.references(0)
    source = StreamSource(
        {0: shards}, images, views, trial.cache, codec, "exact", 0.0, {0: trial.cache.manifest(0)["environment"]}
    )
    loader = stream_loader(Stream(source, batch_size, seed=0), read_loader(cfg.train_dataloader))
    student = build(MODELS, cfg.model, "model")
    priors = priors_of(class_head(trial.teacher.detector)) if sections.distill.score_weight else None
    grids = first_grids(trial.cache, {0: shards})
    layout = TeacherLayout(grids, codec.widths(len(grids[0][1])), codec.score_channels, priors)
    model = Distiller(student, CachedTeacher(codec), sections.distill, layout)
    model.to(own_device()).train()
    with config_errors("optim_wrapper"):
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    steps: list[tuple[int, float]] = []  # images, seconds
    live: list[float] = []
    begun = last = now()
    for data in loader:
        count = len(data["inputs"])
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # untrained weights could diverge at the schedule's rate
        model.train_step(data, optimizer)
        list(model.parameters())[-1].sum().item()  # waits for the GPU
        steps.append((count, now() - last))
        if len(steps) > 1 and len(live) < 3:
            started = now()
            trial.teacher.by_shape(data["inputs"]).frs[0].sum().item()
            live.append((now() - started) / count)
        last = now()
        if len(steps) >= UNCOUNTED + COUNTED or (len(steps) > 1 and last - begun > seconds):
            break
    counted = steps[UNCOUNTED:] or steps[1:] or steps
    # The last batch of an epoch may be smaller, and slower per image.
    full = [step for step in counted if step[0] == batch_size] or counted
    rate = statistics.median(images / max(seconds, 1e-9) for images, seconds in full)
    return Training(rate, statistics.median(live or [trial.teacher_seconds]))
