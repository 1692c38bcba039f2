"""Views of a config's data sets for the benchmarks, made as stage 1 makes them."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from pipeline.cache.shard_plan import mix
from pipeline.data.images import Images
from pipeline.data.shard_planning import plan_views
from pipeline.data.views import Views
from pipeline.stage1.job import Job
from pipeline.stage1.loader import ViewLoader

SEED = 77


def same_scale(pipeline: list[dict[str, Any]], scale: tuple[int, int]) -> None:
    """Set the scale of every transform that has one."""
    for transform in pipeline:
        if "scale" in transform:
            transform["scale"] = scale


def draw(
    job: Job, count: int, dataset: dict[str, Any] | None = None, scale: tuple[int, int] | None = None
) -> list[Tensor]:
    """Draw seeded images, and return a view (3, h, w) uint8 of each.

    dataset: config of another data set, whose images go through the train pipeline (default: the train data set).
    scale: another scale for the train pipeline.
    """
    images, views = job.images, job.views
    pipeline = copy.deepcopy(images.pipeline)
    if scale is not None:
        same_scale(pipeline, (scale[0], scale[1]))
        views = Views(pipeline, job.sections.views.seed, job.sections.views.count)
    if dataset is not None:
        others = {key: value for key, value in dict(dataset).items() if key not in ("test_mode", "pipeline")}
        images = Images({**others, "filter_cfg": job.images.files[0].filter_cfg, "pipeline": pipeline})
    ids = sorted(images.ids, key=lambda image: mix(SEED, 0, image))[:count]
    shards = plan_views(images, views, 0, job.plan["layout"], ids)
    batches = [(shard, batch) for shard in shards for batch in shard.batches]
    return [view for _, batch in ViewLoader(images, views, batches, 0).batches() for view in batch.views]
