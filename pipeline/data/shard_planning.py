"""From images and views to the plan of a pass: the one place where both stages agree on it."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.cache.shard_plan import ShardPlan, plan_pass
from pipeline.config import Sections
from pipeline.data.images import Images
from pipeline.data.views import Views
from pipeline.errors import ConfigError, StaleCache
from pipeline.mmdet_compat.registry import Config
from pipeline.storage.place import Place


def images_and_views(cfg: Config, sections: Sections) -> tuple[Images, Views]:
    """Build what a config trains on: its images, and the views that its pipeline makes of each."""
    images = Images(cfg.train_dataloader.dataset)
    return images, Views(images.pipeline, sections.views.seed, sections.views.count)


def layout_of(sections: Sections) -> dict[str, int]:
    """Return the numbers that, with images and views, decide a shard plan."""
    cache = sections.cache
    return {"batch_size": cache.batch_size, "shard_samples": cache.shard_samples, "seed": sections.views.seed}


def expected_passes(sections: Sections, views: Views) -> range:
    """Return the passes that a complete cache has: one for each view unless the config says fewer.

    Raises ConfigError where it says more.
    """
    passes = sections.cache.passes or views.count
    if passes > views.count:
        raise ConfigError(f"cache.passes: {passes}, but an image has only {views.count} views; more would repeat them")
    return range(passes)


def require_images(root: Place, number: int, planned: set[int], images: Images) -> None:
    """Raise StaleCache unless a pass holds just the images that the config's data set yields."""
    wanted = set(images.ids)
    if planned != wanted:
        raise StaleCache(
            f"{root}/pass-{number}: planned for {len(planned)} images, the config's data set yields {len(wanted)} "
            f"({len(planned ^ wanted)} differ; filter_cfg or indices?); use another cache.dir"
        )


def plan_views(
    images: Images, views: Views, number: int, layout: dict[str, int], ids: Iterable[int] | None = None
) -> list[ShardPlan]:
    """Plan the shards of pass `number` over all images (or `ids`)."""
    return plan_pass(
        images.ids if ids is None else ids,
        number,
        views.count if views.finite else None,
        lambda image, view: views.pad_shape(images.info(image), view),
        layout["batch_size"],
        layout["shard_samples"],
        layout["seed"],
    )
