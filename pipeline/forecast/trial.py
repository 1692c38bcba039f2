"""A small cache of a seeded sample of the images, made by stage 1's own code: its cost is measured, not guessed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeline.cache.cache import Cache, differences, pass_folder
from pipeline.cache.files import digest, write_json
from pipeline.cache.manifest import write_manifest
from pipeline.cache.place import Place
from pipeline.cache.plan import ShardPlan, mix
from pipeline.caching.calibrate import calibrated
from pipeline.caching.job import Job
from pipeline.caching.passes import Quarantine, make_shards
from pipeline.codec.base import Codec, positions
from pipeline.errors import DataError
from pipeline.planning import plan_views
from pipeline.reencode.calibration import calibrate_like
from pipeline.replay import environment
from pipeline.teacher import Teacher

FITS = 10  # calibration runs the teacher and a probe this many times over each of its views
CALIBRATION_SHARE = 0.6  # of the time that the whole forecast may take
FEWEST = 8  # views to calibrate on


@dataclass
class Trial:
    """A complete cache of some images, and what making it took.

    bytes_by_view: of every array, and `overhead` (tar), one number a view; `positions` of each view; `head`: bytes of a
    shard beside its views. `calibration_views` of stage 1, `calibrated_on` here. Seconds of the calibration, and of the
    teacher alone for a view.
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
    views_per_second: float
    teacher_seconds: float


def teacher_seconds(job: Job, batches: Iterable[Any]) -> float:
    """The teacher's seconds for one view: the better of two runs over the first batch that can be read."""
    skip = job.sections.cache.quarantine
    _, views, _ = next(job.loader(batches).batches(skip), (None, [], None))
    if not views:
        raise DataError("none of the sampled images can be read; give plan more --samples")
    taken = []
    for _ in range(2):
        begun = time.perf_counter()
        job.teacher(views).frs[0].sum().item()  # asks for a number, so that a GPU has to finish
        taken.append(time.perf_counter() - begun)
    return min(taken) / len(views)


@contextmanager
def trial(job: Job, folder: Path, samples: int, seconds: float) -> Iterator[Trial]:
    """Make a cache of `samples` images in a temporary folder inside `folder`; gone when this ends."""
    finished, sections, progress = job.root, job.sections, job.progress
    chosen = sorted(job.images.ids, key=lambda image: mix(sections.views.seed, -2, image))[:samples]
    shards = plan_views(job.images, job.views, 0, job.plan["layout"], chosen)
    with TemporaryDirectory(prefix=".frs-plan-", dir=folder) as temporary:
        job = replace(job, root=Path(temporary))
        once = teacher_seconds(job, (batch for shard in shards for batch in shard.batches))
        affordable = int(CALIBRATION_SHARE * seconds / (FITS * once))
        wanted = min(sections.cache.calibration_views, len(job.images))
        limit = min(wanted, max(FEWEST, affordable))
        job.sections = replace(sections, cache=replace(sections.cache, calibration_views=limit))
        write_json(job.root / "plan.json", job.plan)
        begun = time.perf_counter()
        borrow(finished, job.plan, job.root)
        codec = calibrated(job)
        spent = time.perf_counter() - begun
        progress.start("trial", len(chosen))
        begun = time.perf_counter()
        write_pass(job, codec, shards)
        rate = len(chosen) / (time.perf_counter() - begun)
        progress.stop()
        cache = Cache(job.root)
        yield Trial(cache, codec, job.teacher, *sizes(cache), wanted, limit, spent, rate, once)


def borrow(finished: Place, plan: dict[str, Any], root: Place) -> None:
    """Where stage 1 has calibrated this very cache already, take its codec."""
    if (finished / "codec.json").is_file() and not differences(Cache(finished).plan, plan):
        calibrate_like(Cache(finished), plan, root)


def write_pass(job: Job, codec: Codec, shards: list[ShardPlan]) -> None:
    folder = pass_folder(job.root, 0)
    write_json(folder / "plan.json", {"pass": 0, "shards": [shard.to_json() for shard in shards]})
    make_shards(job, codec, 0, shards, list(range(len(shards))))
    write_manifest(job.root, 0, digest(job.plan), len(shards), 0, Quarantine(folder).rows(), environment())


def sizes(cache: Cache) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """Bytes of every view by array, positions of every view, bytes of a shard beside its views."""
    rows: list[dict[str, int]] = []
    places, heads = [], []
    for refs in filter(None, cache.references(0)):  # quarantine may leave nothing
        reader = cache.shard(0, refs[0].shard)
        heads.append(reader.sidecar.head.size + reader.sidecar.tail.size)
        for index, extent in enumerate(reader.sidecar.samples):
            parts = {name: len(chunk) for name, chunk in reader.chunks(index).items()}
            rows.append({**parts, "overhead": extent.size - sum(parts.values())})
            record = reader.read(index)["record"]
            places.append(positions(tuple(map(tuple, record[11:].reshape(-1, 2).tolist()))))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}, np.array(places), float(np.mean(heads))
