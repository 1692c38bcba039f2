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

from pipeline.cache.cache import Cache, differences
from pipeline.cache.canonical import digest, write_json
from pipeline.cache.layout import pass_folder
from pipeline.cache.manifest import write_manifest
from pipeline.cache.shard_plan import ShardPlan, mix
from pipeline.calibration.calibrate import load_or_calibrate_codec
from pipeline.calibration.sample import ViewSample
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import positions
from pipeline.data.replay import environment
from pipeline.data.shard_planning import plan_views
from pipeline.errors import DataError
from pipeline.stage1.job import Job
from pipeline.stage1.passes import make_shards
from pipeline.stage1.quarantine import Quarantine
from pipeline.storage.place import Place
from pipeline.teacher.model import Teacher
from pipeline.tools.reencode.calibration import calibrate_like

# What a view takes in calibration, and in the pass, in units of the teacher alone (docs/results/face.md).
FIT_COST, PASS_COST = 30, 3
CALIBRATION_SHARE, PASS_SHARE = 0.55, 0.25  # of the time that is left
FEWEST_FITTED, FEWEST = 16, 32  # views that the size is within 10% from, whatever time they take


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
    """Make a cache of up to `samples` images in a temporary folder inside `folder`; gone when this ends.

    `seconds`: what is left for this and for training. A slow teacher gets fewer views, and at last more time.
    """
    finished, sections, progress = job.root, job.sections, job.progress
    chosen = sorted(job.images.ids, key=lambda image: mix(sections.views.seed, -2, image))[:samples]
    planned = lambda count: plan_views(job.images, job.views, 0, job.plan["layout"], chosen[:count])  # noqa: E731
    with TemporaryDirectory(prefix=".frs-plan-", dir=folder) as temporary:
        job = replace(job, root=Path(temporary))
        once = teacher_seconds(job, (batch for shard in planned(samples) for batch in shard.batches))
        shards = planned(max(FEWEST, int(PASS_SHARE * seconds / (PASS_COST * once))))
        wanted = min(sections.cache.calibration_views, len(job.images))
        limit = min(wanted, max(FEWEST_FITTED, int(CALIBRATION_SHARE * seconds / (FIT_COST * once))))
        job.sections = replace(sections, cache=replace(sections.cache, calibration_views=limit))
        write_json(job.root / "plan.json", job.plan)
        begun = time.perf_counter()
        borrow(finished, job.plan, job.root)
        sample = ViewSample(job)
        sample.parts["reported"] = sample.parts["reported"][:1]  # no table or step depends on these
        codec = load_or_calibrate_codec(job, sample)
        spent = time.perf_counter() - begun
        count = sum(len(shard.samples) for shard in shards)
        progress.start("trial", count)
        begun = time.perf_counter()
        write_pass(job, codec, shards)
        rate = count / (time.perf_counter() - begun)
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
