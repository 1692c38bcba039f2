"""Plan the shards of a pass from images and views. Both stages use this module, so their plans agree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.budget import BUDGET, excess
from pipeline.cache.shard_plan import ShardPlan, plan_pass, view_of
from pipeline.data.images import Images
from pipeline.data.shared_folder import shared_folder
from pipeline.data.views import Views, kept_generators
from pipeline.errors import ConfigError, StaleCache, ViewError
from pipeline.mmdet_compat.registry import Config
from pipeline.sections import Sections
from pipeline.storage.place import Place


def images_and_views(cfg: Config, sections: Sections, keep: bool = True) -> tuple[Images, Views]:
    """Build the images of a config's data set, and the views that its pipeline makes of each.

    `keep`: the parsed annotation file, for other processes and later starts.
    """
    images = Images(cfg.train_dataloader.dataset, shared_folder(sections) if keep else None)
    return images, Views(images.pipeline, sections.views.seed, sections.views.count)


def layout_of(sections: Sections) -> dict[str, int]:
    """Return the settings that determine a shard plan, together with images and views."""
    cache = sections.cache
    return {"batch_size": cache.batch_size, "shard_samples": cache.shard_samples, "seed": sections.views.seed}


def expected_passes(sections: Sections, views: Views) -> range:
    """Return the passes of a complete cache: one for each view, or `cache.passes` if it is smaller.

    Raise ConfigError where `cache.passes` is larger.
    """
    passes = sections.cache.passes or views.count
    if passes > views.count:
        raise ConfigError(
            f"cache.passes: expected at most {views.count}, the number of views of an image, found {passes}"
        )
    wrong = excess("passes", passes, BUDGET.passes)
    if wrong is not None:
        raise ConfigError(f"{wrong}; set cache.passes to a smaller number")
    return range(passes)


def require_images(root: Place, number: int, planned: set[int], images: Images) -> None:
    """Raise StaleCache where the images of a pass are not exactly those of the config's data set."""
    wanted = set(images.ids)
    if planned != wanted:
        raise StaleCache(
            f"{root}/pass-{number}: planned for {len(planned)} images, the config's data set has {len(wanted)} "
            f"({len(planned ^ wanted)} differ); check filter_cfg and indices, or use another cache.dir"
        )


def plan_views(
    images: Images, views: Views, number: int, layout: dict[str, int], ids: Iterable[int] | None = None
) -> list[ShardPlan]:
    """Plan the shards of pass `number` over all images (or `ids`). Views without boxes may be left out (`Views`).

    Raise ViewError where none of all images is left.
    """
    with kept_generators():
        shards = plan_pass(
            images.ids if ids is None else ids,
            number,
            views.count if views.finite else None,
            lambda image, view: views.plan_pad_shape(outline(images, views, image), view),
            layout["batch_size"],
            layout["shard_samples"],
            layout["seed"],
        )
    if not shards and ids is None:
        raise ViewError(
            f"views: no view of pass {number} has a box left after the transforms; check crop sizes and "
            "FilterAnnotations in train_dataloader.dataset.pipeline"
        )
    return shards


def is_empty(images: Images, views: Views, number: int, image: int) -> bool:
    """Return whether the transforms leave the view of an image out of pass `number`, because no box is in it."""
    view = view_of(image, number, views.count if views.finite else None)
    return views.pad_shape(outline(images, views, image), view) is None


def outline(images: Images, views: Views, image: int) -> dict[str, Any]:
    """Return what the size of a view depends on: the image's id and size, and its boxes if they decide it."""
    if views.by_boxes:
        return images.info(image)
    height, width = images.size(image)
    return {"img_id": image, "height": height, "width": width}
