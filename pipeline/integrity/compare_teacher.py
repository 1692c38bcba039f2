"""Does a cache still say what its teacher says? A random sample of views, computed again and compared."""

from __future__ import annotations

import random
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.cache.layout import load_pass_plan
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
from pipeline.stage1.loader import ViewLoader
from pipeline.storage.local import sha256_file
from pipeline.teacher.model import Teacher, own_device
from pipeline.teacher.zoo import TeacherSpec, find_teacher

ALLOWED = 1.25  # of the codec's own bound; the rest is for the last digits of another machine


def compare_live(cfg: Config, sections: Sections, count: int, seed: int = 0) -> dict[str, Any]:
    """Run the teacher on at least `count` views, in the batches of stage 1.

    {'views', 'allowed', 'worst': {tensor: error over the codec's bound}, 'bad': a line for each batch beyond it}.
    Raises PipelineError: another teacher or data set, a view that is not replayed, a sample that cannot be read.
    """
    cache, images, views, spec = required(cfg, sections)
    codec = load_codec(cache.root, cache.codec_manifest())
    teacher = Teacher(spec, images.classes, own_device(), sections.teacher.tf32)
    done, worst, bad = 0, dict[str, float](), []
    for number, shard, start, batch in sampled(cache, seed):
        if done >= count:
            break
        reader = cache.shard(number, shard)
        made_with = cache.manifest(number)["environment"]
        ((_, inputs, records),) = ViewLoader(images, views, [batch], 0).batches()
        samples, levels = [], []
        for index, record in enumerate(records, start):
            cached, grids, stored = reader.view(index, codec.check_sample)
            check_replay(cached, record, sections.views.check, sections.views.tolerance, made_with)
            samples.append(stored)
            levels.append(grids)
        encoded = stack(samples, levels).to(teacher.device)
        found = overshoot(codec, teacher(inputs), encoded)
        done += len(records)
        worst = {name: max(value, worst.get(name, 0.0)) for name, value in found.items()}
        bad += [
            f"{reader.path}: samples {start}-{start + len(records) - 1}: {name} err {value:.2f} times the codec's bound"
            for name, value in found.items()
            if not value <= ALLOWED
        ]
    if not done:
        raise StaleCache(f"{cache.root}: holds no view to compare")
    return {"views": done, "allowed": ALLOWED, "worst": {k: round(v, 4) for k, v in worst.items()}, "bad": bad}


def required(cfg: Config, sections: Sections) -> tuple[Cache, Images, Views, TeacherSpec]:
    """The config's cache and what it was made from. Raises StaleCache where it is another config's."""
    images, views = images_and_views(cfg, sections)
    spec, cache = find_teacher(sections.teacher), Cache(sections.cache.place())
    cache.require(make_recipe(sections, images, views, spec), sha256_file(spec.weights()))
    return cache, images, views, spec


def sampled(cache: Cache, seed: int) -> list[tuple[int, int, int, Any]]:
    """(pass, shard, index of its first sample, batch) of every teacher batch, shuffled."""
    found = []
    for number in cache.passes():
        cache.references(number)  # checks plan.json against the manifest
        left_out = {image for image, _ in cache.manifest(number)["quarantine"]}
        for n, planned in enumerate(load_pass_plan(cache.root, number)):
            at = 0
            for batch in planned.without(left_out).batches:
                found.append((number, n, at, batch))
                at += len(batch[1])
    random.Random(seed).shuffle(found)
    return found
