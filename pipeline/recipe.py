"""The recipe of a cache: everything that decides its content and is known from the config and the annotation file.

This module also reads the inputs that a recipe is made from, and opens a cache and compares it with a recipe.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.cache.cache import FORMAT, MAKER, Cache
from pipeline.cache.existing import find_version
from pipeline.cache.versions import VERSION
from pipeline.data.coco import annotation_path
from pipeline.data.images import Images
from pipeline.data.shard_planning import images_and_views
from pipeline.data.views import PAD, Views
from pipeline.data.wrappers import unwrap
from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import Config, plain
from pipeline.progress import LARGE_FILE, LARGE_JSON, Log, announce_file
from pipeline.sections import Sections
from pipeline.storage.place import Place
from pipeline.teacher.class_scores import score_rule
from pipeline.teacher.zoo import TeacherSpec, find_teacher

NOT_CONTENT = ("init_cfg", "train_cfg", "test_cfg")  # parts of a model's config that do not affect its dense output


@dataclass(frozen=True)
class Inputs:
    """The inputs of a cache: images, their views and the teacher, with the recipe made from them."""

    images: Images
    views: Views
    teacher: TeacherSpec
    recipe: dict[str, Any]


def announce_inputs(cfg: Config, sections: Sections, log: Log) -> None:
    """Log one line for each input that takes longer than a few seconds to read, hash or download."""
    with suppress(ConfigError):  # `read_inputs` says what is wrong
        for dataset in unwrap(cfg.train_dataloader.dataset)[0]:
            announce_file(log, "images   reading", annotation_path(dataset), LARGE_JSON)
    spec = find_teacher(sections.teacher)
    if spec.url is not None and not spec.checkpoint.is_file():
        log(f"teacher  weights are missing: {spec.checkpoint}, from {spec.url}")
    announce_file(log, "teacher  hashing", spec.checkpoint, LARGE_FILE)


def read_inputs(cfg: Config, sections: Sections, keep: bool = True) -> Inputs:
    """Read the inputs of a cache from a config. Does not build or load the teacher. Raise PipelineError.

    `keep`: the parsed annotation file, for other processes and later starts.
    """
    images, views = images_and_views(cfg, sections, keep)
    teacher, version = find_teacher(sections.teacher), find_version(sections.cache.place())
    return Inputs(images, views, teacher, make_recipe(sections, images, views, teacher, version))


def open_cache(root: str | Place, inputs: Inputs, weights_sha256: str | None = None, next_step: str = MAKER) -> Cache:
    """Open a cache and check that it was made from these inputs.

    `weights_sha256`: that of the teacher's weights; None if it is not known. `next_step`: the last part of the message
    of a StaleCache, which says what to do. Raise StaleCache that names the first field that differs, CacheError or
    CorruptCache.
    """
    cache = Cache(root)
    cache.require(inputs.recipe, weights_sha256, next_step)
    return cache


def make_recipe(
    sections: Sections, images: Images, views: Views, teacher: TeacherSpec, version: int = VERSION
) -> dict[str, Any]:
    """Return the recipe, a JSON value. Two configs with equal recipes can share a cache. `version`: of its format.

    The student's `model=`, the schedule and paths are not part of it.
    """
    model = plain(teacher.cfg.model.to_dict())
    rule = score_rule(teacher.cfg.model)
    return {
        "format": [FORMAT, version],
        "teacher": {
            "name": teacher.label if teacher.zoo else None,  # a file name does not affect the content
            "model": _without(model, NOT_CONTENT),
            "preprocess": {k: v for k, v in model["data_preprocessor"].items() if k != "batch_augments"},
            "precision": "float32",
            "tf32": sections.teacher.tf32,
            **({} if rule is None else {"scores": rule}),
        },
        "data": _data(images),
        "views": {
            "seed": sections.views.seed,
            "transforms": views.rule,
            "finite": views.count if views.finite else None,
            "pad": PAD,
        },
        "codec": sections.cache.codec.to_json(),
    }


def _data(images: Images) -> dict[str, Any]:
    """Return the data part of a recipe. With several annotation files, it lists what it has of each."""
    kinds, filters = [file.type for file in images.files], [plain(file.filter_cfg) for file in images.files]
    several = len(images.files) > 1
    return {
        "dataset": kinds if several else kinds[0],
        "annotations_sha256": " ".join(file.sha256 for file in images.files),
        "classes": list(images.classes),
        "filter_cfg": filters if several else filters[0],
    }


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, keys) for k, v in value.items() if k not in keys}
    return [_without(v, keys) for v in value] if isinstance(value, list) else value
