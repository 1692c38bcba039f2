"""Does a cache still say what its teacher says? A random sample of views, computed again and compared."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.codecs.frs.fidelity import overshoot
from pipeline.codecs.group import load_codec
from pipeline.codecs.packing import stack
from pipeline.config import Sections
from pipeline.data.images import Images
from pipeline.data.replay import check_replay
from pipeline.data.shard_planning import images_and_views
from pipeline.data.views import Views
from pipeline.errors import StaleCache
from pipeline.mmdet_compat.registry import Config
from pipeline.recipe import make_recipe
from pipeline.stage1.loader import Batch, ViewLoader
from pipeline.storage.local import sha256_file
from pipeline.teacher.model import Teacher, own_device
from pipeline.teacher.zoo import TeacherSpec, find_teacher

ALLOWED = 1.25  # of the codec's own bound; the rest is for the last digits of another machine


@dataclass(frozen=True)
class PlacedBatch:
    """A teacher batch and where it lies: pass, shard, index of its first sample."""

    cache_pass: int
    shard: int
    start: int
    batch: Batch


def compare_live(cfg: Config, sections: Sections, count: int, seed: int = 0) -> dict[str, Any]:
    """Run the teacher on at least `count` views, in the batches of stage 1.

    {'views', 'allowed', 'worst': {tensor: error over the codec's bound}, 'bad': a line for each batch beyond it}.
    Raises PipelineError: another teacher or data set, a view that is not replayed, a sample that cannot be read.
    """
    cache, images, views, spec = open_required(cfg, sections)
    codec = load_codec(cache.root, cache.codec_manifest())
    teacher = Teacher(spec, images.classes, own_device(), sections.teacher.tf32)
    done, worst, bad = 0, dict[str, float](), list[str]()
    for placed in shuffled_batches(cache, seed):
        if done >= count:
            break
        reader = cache.shard(placed.cache_pass, placed.shard)
        made_with = cache.manifest(placed.cache_pass)["environment"]
        ((_, batch),) = ViewLoader(images, views, [(placed, placed.batch)], 0).batches()
        samples, levels = [], []
        for index, record in enumerate(batch.records, placed.start):
            cached, grids, stored = reader.view(index, codec.check_sample)
            check_replay(cached, record, sections.views.check, sections.views.tolerance, made_with)
            samples.append(stored)
            levels.append(grids)
        found = overshoot(codec, teacher(batch.views), stack(samples, levels).to(teacher.device))
        done += len(samples)
        worst = {name: max(value, worst.get(name, 0.0)) for name, value in found.items()}
        where = f"{reader.path}: samples {placed.start}-{placed.start + len(samples) - 1}"
        bad += [
            f"{where}: {name} err {value:.2f} times the codec's bound"
            for name, value in found.items()
            if not value <= ALLOWED
        ]
    if not done:
        raise StaleCache(f"{cache.root}: holds no view to compare")
    return {"views": done, "allowed": ALLOWED, "worst": {k: round(v, 4) for k, v in worst.items()}, "bad": bad}


def open_required(cfg: Config, sections: Sections) -> tuple[Cache, Images, Views, TeacherSpec]:
    """Open the config's cache and what it was made from. Raises StaleCache where it is another config's."""
    images, views = images_and_views(cfg, sections)
    spec, cache = find_teacher(sections.teacher), Cache(sections.cache.place())
    cache.require(make_recipe(sections, images, views, spec), sha256_file(spec.weights()))
    return cache, images, views, spec


def shuffled_batches(cache: Cache, seed: int) -> list[PlacedBatch]:
    """Return every teacher batch of the complete passes, shuffled."""
    found = []
    for number in cache.passes():
        for n, shard in enumerate(cache.shard_plans(number)):
            start = 0
            for batch in shard.batches:
                found.append(PlacedBatch(number, n, start, batch))
                start += len(batch[1])
    random.Random(seed).shuffle(found)
    return found
