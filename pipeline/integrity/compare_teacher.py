"""Run the teacher on a random sample of views and compare its output with the cache."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.codecs.batches import require_affordable_batch
from pipeline.codecs.group import open_codec
from pipeline.codecs.packing import stack
from pipeline.data.replay import check_replay
from pipeline.errors import StaleCache
from pipeline.mmdet_compat.registry import Config
from pipeline.precision import precision
from pipeline.recipe import Inputs, open_cache, read_inputs
from pipeline.sections import Sections
from pipeline.stage1.loader import Batch, ViewLoader
from pipeline.teacher.model import load_teacher

ALLOWED = 1.25  # error, as a multiple of the codec's bound; rounding differs between machines


@dataclass(frozen=True)
class PlacedBatch:
    """A teacher batch and its place in the cache: pass, shard, index of its first sample."""

    cache_pass: int
    shard: int
    start: int
    batch: Batch


def compare_live(cfg: Config, sections: Sections, count: int, seed: int = 0) -> dict[str, Any]:
    """Run the teacher on at least `count` views, in the batches of stage 1.

    Return {'views', 'allowed', 'worst': {tensor: error / codec's bound}, 'bad': one line for each batch above ALLOWED}.
    Raise PipelineError where the teacher or data set differs, or a view cannot be replayed or read.
    """
    cache, inputs = open_required(cfg, sections)
    codec = open_codec(cache)
    teacher = load_teacher(sections, inputs.teacher, inputs.images.classes)
    files = cache.stored_images() if sections.cache.images else None
    done, worst, bad = 0, dict[str, float](), list[str]()
    for placed in shuffle_batches(cache, seed):
        if done >= count:
            break
        reader = cache.shard(placed.cache_pass, placed.shard)
        require_affordable_batch(reader, range(placed.start, placed.start + len(placed.batch[1])), codec)
        environment = cache.manifest(placed.cache_pass)["environment"]
        ((_, batch),) = ViewLoader(inputs.images, inputs.views, [(placed, placed.batch)], 0, files).batches()
        samples, levels = [], []
        for index, record in enumerate(batch.records, placed.start):
            cached, grids, stored = reader.view(index, codec)
            check_replay(cached, record, sections.views.check, sections.views.tolerance, environment)
            samples.append(stored)
            levels.append(grids)
        with precision(False):
            found = codec.compare(teacher(batch.views), stack(samples, levels).to(teacher.device))
        done += len(samples)
        worst = {name: max(value, worst.get(name, 0.0)) for name, value in found.items()}
        where = f"{reader.path}: samples {placed.start}-{placed.start + len(samples) - 1}"
        bad += [
            f"{where}: error of {name} is {value:.2f} times the codec's bound, expected at most {ALLOWED}"
            for name, value in found.items()
            if not value <= ALLOWED
        ]
    if not done:
        raise StaleCache(f"{cache.root}: no complete pass has a view to compare; run stage 1")
    return {"views": done, "allowed": ALLOWED, "worst": {k: round(v, 4) for k, v in worst.items()}, "bad": bad}


def open_required(cfg: Config, sections: Sections) -> tuple[Cache, Inputs]:
    """Open the config's cache and read its inputs. Raise StaleCache where another config made it."""
    inputs = read_inputs(cfg, sections)
    return open_cache(sections.cache.place(), inputs, inputs.teacher.weights_sha256()), inputs


def shuffle_batches(cache: Cache, seed: int) -> list[PlacedBatch]:
    """Return the teacher batches of all complete passes in random order."""
    found = []
    for number in cache.passes():
        for n, shard in enumerate(cache.shard_plans(number)):
            start = 0
            for batch in shard.batches:
                found.append(PlacedBatch(number, n, start, batch))
                start += len(batch[1])
    random.Random(seed).shuffle(found)
    return found
