"""Does a cache still say what its teacher says? A random sample of views, computed again and compared."""

from __future__ import annotations

import random
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.cache.layout import load_pass_plan
from pipeline.codecs.group import open_codec
from pipeline.codecs.packing import stack
from pipeline.config import Sections
from pipeline.data.replay import check_replay
from pipeline.errors import StaleCache
from pipeline.mmdet_compat.registry import Config
from pipeline.recipe import Inputs, open_cache, read_inputs
from pipeline.stage1.loader import ViewLoader
from pipeline.teacher.model import Teacher, own_device

ALLOWED = 1.25  # of the codec's own bound; the rest is for the last digits of another machine


def compare_live(cfg: Config, sections: Sections, count: int, seed: int = 0) -> dict[str, Any]:
    """Run the teacher on at least `count` views, in the batches of stage 1.

    {'views', 'allowed', 'worst': {tensor: error over the codec's bound}, 'bad': a line for each batch beyond it}.
    Raises PipelineError: another teacher or data set, a view that is not replayed, a sample that cannot be read.
    """
    cache, inputs = required(cfg, sections)
    codec = open_codec(cache)
    teacher = Teacher(inputs.teacher, inputs.images.classes, own_device(), sections.teacher.tf32)
    done, worst, bad = 0, dict[str, float](), []
    for number, shard, start, batch in sampled(cache, seed):
        if done >= count:
            break
        reader = cache.shard(number, shard)
        made_with = cache.manifest(number)["environment"]
        ((_, pixels, records),) = ViewLoader(inputs.images, inputs.views, [batch], 0).batches()
        samples, levels = [], []
        for index, record in enumerate(records, start):
            cached, grids, stored = reader.view(index, codec.check_sample)
            check_replay(cached, record, sections.views.check, sections.views.tolerance, made_with)
            samples.append(stored)
            levels.append(grids)
        encoded = stack(samples, levels).to(teacher.device)
        found = codec.compare(teacher(pixels), encoded)
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


def required(cfg: Config, sections: Sections) -> tuple[Cache, Inputs]:
    """Open the config's cache and read what it was made of. Raises StaleCache where it is another config's."""
    inputs = read_inputs(cfg, sections)
    return open_cache(sections.cache.place(), inputs, inputs.teacher.weights_sha256()), inputs


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
