"""The recipe: everything that decides a cache's content and can be known from config and annotation file alone."""

from __future__ import annotations

from typing import Any

from pipeline.cache.cache import FORMAT, VERSION
from pipeline.codecs.registry import codec_settings
from pipeline.config import Sections
from pipeline.data.images import Images
from pipeline.data.views import PAD, Views
from pipeline.mmdet_compat.registry import plain
from pipeline.storage.local import sha256_file
from pipeline.teacher.zoo import TeacherSpec

NOT_CONTENT = ("init_cfg", "train_cfg", "test_cfg")  # parts of a model's config that leave its dense output alone


def make_recipe(sections: Sections, images: Images, views: Views, teacher: TeacherSpec) -> dict[str, Any]:
    """JSON value; two configs with equal recipes may share a cache. `model=`, schedule and paths are no part of it."""
    model = plain(teacher.cfg.model.to_dict())
    return {
        "format": [FORMAT, VERSION],
        "teacher": {
            "name": teacher.label if teacher.zoo else None,  # the names of files are no content
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
        "codec": codec_settings(plain(dict(sections.cache.codec))),
    }


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, keys) for k, v in value.items() if k not in keys}
    return [_without(v, keys) for v in value] if isinstance(value, list) else value
