"""From images and views to the plan of a pass: the one place where both stages agree on it."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.cache.plan import ShardPlan, plan_pass
from pipeline.config import Sections
from pipeline.data import Images
from pipeline.views import Views


def layout_of(sections: Sections) -> dict[str, int]:
    """The numbers that, with images and views, decide a plan."""
    cache = sections.cache
    return {"batch_size": cache.batch_size, "shard_samples": cache.shard_samples, "seed": sections.views.seed}


def plan_views(
    images: Images, views: Views, number: int, layout: dict[str, int], ids: Iterable[int] | None = None
) -> list[ShardPlan]:
    """Shards of pass `number` over all images (or `ids`)."""
    return plan_pass(
        images.ids if ids is None else ids,
        number,
        views.count if views.finite else None,
        lambda image, view: views.pad_shape(images.info(image), view),
        layout["batch_size"],
        layout["shard_samples"],
        layout["seed"],
    )
