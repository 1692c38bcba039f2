"""The recipe of a cache, the inputs it is made of, and a cache opened and checked against it.

The recipe is everything that decides a cache's content and is known from config and annotation file alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.cache.cache import FORMAT, VERSION, Cache
from pipeline.config import Sections
from pipeline.data.images import Images
from pipeline.data.shard_planning import images_and_views
from pipeline.data.views import PAD, Views
from pipeline.mmdet_compat.registry import Config, plain
from pipeline.storage.local import sha256_file
from pipeline.storage.place import Place
from pipeline.teacher.zoo import TeacherSpec, find_teacher

NOT_CONTENT = ("init_cfg", "train_cfg", "test_cfg")  # parts of a model's config that leave its dense output alone


@dataclass(frozen=True)
class Inputs:
    """What a config makes a cache of: images, their views, the teacher; and the recipe that follows from them."""

    images: Images
    views: Views
    teacher: TeacherSpec
    recipe: dict[str, Any]


def read_inputs(cfg: Config, sections: Sections) -> Inputs:
    """Read what a config makes a cache of; the teacher is neither built nor loaded. Raises PipelineError."""
    images, views = images_and_views(cfg, sections)
    teacher = find_teacher(sections.teacher)
    return Inputs(images, views, teacher, make_recipe(sections, images, views, teacher))


def open_cache(
    root: str | Place, inputs: Inputs, weights_sha256: str | None = None, advice: str = "give the config that made it"
) -> Cache:
    """Open a cache that was made of these inputs, and of these weights where they are known.

    Raises StaleCache, naming the first field that differs, CacheError or CorruptCache.
    """
    cache = Cache(root)
    cache.require(inputs.recipe, weights_sha256, advice)
    return cache


def make_recipe(sections: Sections, images: Images, views: Views, teacher: TeacherSpec) -> dict[str, Any]:
    """Make the recipe, a JSON value. Two configs with equal recipes may share a cache.

    `model=`, schedule and paths are no part of it.
    """
    model = plain(teacher.cfg.model.to_dict())
    return {
        "format": [FORMAT, VERSION],
        "teacher": {
            "name": teacher.label if teacher.zoo else None,  # file names are no content
            "model": _without(model, NOT_CONTENT),
            "preprocess": {k: v for k, v in model["data_preprocessor"].items() if k != "batch_augments"},
            "precision": "float32",
            "tf32": sections.teacher.tf32,
        },
        "data": {
            "dataset": images.type,
            "annotations_sha256": sha256_file(images.ann_file),
            "classes": list(images.classes),
            "filter_cfg": plain(images.filter_cfg),
        },
        "views": {
            "seed": sections.views.seed,
            "transforms": views.rule,
            "finite": views.count if views.finite else None,
            "pad": PAD,
        },
        "codec": sections.cache.codec.to_json(),
    }


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, keys) for k, v in value.items() if k not in keys}
    return [_without(v, keys) for v in value] if isinstance(value, list) else value
