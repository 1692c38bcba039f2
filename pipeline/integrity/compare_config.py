"""Compare a cache with a config: the recipe, the images and the number of passes. Runs no teacher and no transform."""

from __future__ import annotations

from pipeline.data.shard_planning import expected_passes, require_images
from pipeline.errors import CacheError, StaleCache
from pipeline.mmdet_compat.registry import Config
from pipeline.recipe import open_cache, read_inputs
from pipeline.sections import Sections


def compare_config(cfg: Config, sections: Sections, need_weights: bool = False) -> int:
    """Return the number of passes that a config makes. Raise StaleCache where its cache was made by another config.

    `need_weights`: fetch the teacher's weights if they are missing. Otherwise they are compared only if they are there.
    Faults of the cache itself are not raised; `find_faults` lists them all.
    """
    inputs = read_inputs(cfg, sections)
    passes = len(expected_passes(sections, inputs.views))
    weights = inputs.teacher.weights_sha256() if need_weights else inputs.teacher.known_sha256()
    try:
        cache = open_cache(sections.cache.place(), inputs, weights)
        for number in cache.passes():
            require_images(cache.root, number, cache.planned_images(number), inputs.images)
    except StaleCache:
        raise
    except CacheError:
        pass
    return passes
