"""Make a small cache of a seeded sample of the images with stage 1's code, and measure its cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor

from pipeline.cache.cache import Cache, differences
from pipeline.cache.canonical import digest, write_json
from pipeline.cache.layout import pass_folder
from pipeline.cache.manifest import write_manifest
from pipeline.cache.quarantine import Quarantine
from pipeline.cache.shard_plan import ShardPlan, mix
from pipeline.calibration.calibrate import load_or_calibrate_codec
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import positions
from pipeline.data.replay import library_versions
from pipeline.data.shard_planning import plan_views
from pipeline.errors import DataError
from pipeline.stage1.job import Job
from pipeline.stage1.loop import make_shards
from pipeline.stage1.passes import write_shard_plan
from pipeline.storage.place import Place
from pipeline.teacher.model import Teacher
from pipeline.tools.forecast.clock import Clock
from pipeline.tools.forecast.timed_sample import TimedSample
from pipeline.tools.reencode.calibration import copy_codec

# Time per view in the calibration and in the pass, as a multiple of the teacher's time (docs/results/face.md).
FIT_COST, PASS_COST = 30, 3
CALIBRATION_SHARE, PASS_SHARE = 0.55, 0.25  # shares of the remaining time
TIMING_SHARE = 0.1  # the same, to time a batch
FEWEST_FITTED, FEWEST = 8, 4  # fewest views, however slow


@dataclass
class Trial:
    """A complete cache of some images, and its cost.

    bytes_by_view: bytes of each view, for every array and for `overhead` (tar). positions: FPN positions of each view.
    head: bytes of a shard without its views. calibration_views: views that stage 1 will calibrate on. calibrated_on:
    views that the trial calibrated on. calibration_seconds: of the trial. training_seconds: the part of it that trained
    a network. teacher_seconds: the teacher alone, per view.
    """

    cache: Cache
    codec: Codec
    teacher: Teacher
    bytes_by_view: dict[str, np.ndarray]
    positions: np.ndarray
    head: float
    calibration_views: int
    calibrated_on: int
    calibration_seconds: float
    training_seconds: float
    views_per_second: float
    teacher_seconds: float


def time_teacher(job: Job, shards: list[ShardPlan], clock: Clock) -> float:
    """Measure the teacher's seconds per view: the faster of two runs over the first readable batch, or of one view."""
    loader = job.loader((shard, batch) for shard in shards for batch in shard.batches)
    for _, batch in loader.batches(skip_broken=job.sections.cache.quarantine):
        found = _time(job, batch.views[:1], clock)
        if 2 * len(batch.views) * found < TIMING_SHARE * clock.left:
            found = min(_time(job, batch.views, clock) for _ in range(2))
        return max(found, 1e-9)
    raise DataError("none of the sampled images can be read; increase --samples")


def _time(job: Job, views: list[Tensor], clock: Clock) -> float:
    begun = clock.now()
    job.teacher(views).frs[0].sum().item()  # waits for the GPU
    return (clock.now() - begun) / len(views)


@contextmanager
def run_trial(job: Job, folder: Path, samples: int, clock: Clock) -> Iterator[Trial]:
    """Make a cache of up to `samples` images in a temporary folder inside `folder`, removed at the end.

    clock: with the remaining time for this and for training. A slow teacher gets fewer views.
    """
    images = sorted(job.images.ids, key=lambda image: mix(job.sections.views.seed, -2, image))[:samples]
    with TemporaryDirectory(prefix=".frs-plan-", dir=folder) as temporary:
        per_view = time_teacher(job, plan_images(job, images), clock)
        share = CALIBRATION_SHARE * clock.left
        wanted = min(job.sections.cache.calibration_views, len(job.images))
        limit = min(wanted, max(FEWEST_FITTED, int(share / (FIT_COST * per_view))))
        section = replace(job.sections.cache, calibration_views=limit)
        small = replace(job, root=Path(temporary), sections=replace(job.sections, cache=section))
        codec, calibration, training = calibrate_trial(small, job.root, clock, share, per_view)
        affordable = int(PASS_SHARE * clock.left / (1 - CALIBRATION_SHARE) / (PASS_COST * per_view))
        shards = plan_images(job, images[: max(FEWEST, affordable)])
        rate = write_pass(small, codec, shards, clock.now)
        cache = Cache(small.root)
        sizes = measure_sizes(cache)
        yield Trial(cache, codec, job.teacher, *sizes, wanted, limit, calibration, training, rate, per_view)


def plan_images(job: Job, images: list[int]) -> list[ShardPlan]:
    """Return the shard plan of a first pass over these images only."""
    return plan_views(job.images, job.views, 0, job.plan["layout"], images)


def calibrate_trial(
    job: Job, finished: Place, clock: Clock, seconds: float, per_view: float
) -> tuple[Codec, float, float]:
    """Calibrate the trial's codec in about `seconds`, or copy that of `finished`, the config's cache.

    Return it, the seconds, and how many of these trained a network.
    """
    write_json(job.root / "gate.json", {"mAP": 0.0, "AP50": 0.0, "images": 0})  # part of the content digest
    write_json(job.root / "plan.json", job.plan)
    begun = clock.now()
    if (finished / "codec.json").is_file() and not differences(Cache(finished).plan, job.plan):
        copy_codec(Cache(finished), job.plan, job.root)
        return load_or_calibrate_codec(job), 0.0, 0.0
    sample = TimedSample(job, clock, seconds, per_view)
    codec = load_or_calibrate_codec(job, sample)
    took = clock.now() - begun
    if clock.left_out:  # of the views that it did not measure
        took = max(took, FIT_COST * per_view * job.sections.cache.calibration_views)
    return codec, took, min(took, sample.training_seconds)


def write_pass(job: Job, codec: Codec, shards: list[ShardPlan], now: Callable[[], float]) -> float:
    """Make a complete pass of these shards. Return planned views per second."""
    views = sum(len(shard.samples) for shard in shards)
    job.progress.start("trial", views)
    begun = now()
    write_shard_plan(job, 0, shards)
    make_shards(job, codec, 0, shards, list(range(len(shards))))
    rows = Quarantine.load(pass_folder(job.root, 0)).rows
    write_manifest(job.root, 0, digest(job.plan), len(shards), 0, rows, library_versions(), job.plan["version"])
    rate = views / max(now() - begun, 1e-9)
    job.progress.stop()
    return rate


def measure_sizes(cache: Cache) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """Measure the bytes of every view by array, its positions, and the bytes of a shard without its views."""
    rows: list[dict[str, int]] = []
    places, heads = [], []
    for refs in filter(None, cache.references(0)):  # a shard is empty if all its images are in quarantine
        reader = cache.shard(0, refs[0].shard)
        # Version 2 has records and thumbnails once for all views, in the head.
        index = {name: size for name, size in reader.sidecar.bytes_by_array.items() if name not in reader.chunks(0)}
        shared = {name: round(size / len(refs)) for name, size in index.items()}
        heads.append(reader.sidecar.head.size + reader.sidecar.tail.size - sum(index.values()))
        for n, extent in enumerate(reader.sidecar.samples):
            parts = {name: len(chunk) for name, chunk in reader.chunks(n).items()}
            rows.append({**parts, **shared, "overhead": extent.size - sum(parts.values())})
            places.append(positions(reader.levels(n)))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}, np.array(places), float(np.mean(heads))
