"""Check one config of mmdet's zoo against the product's own rules for data, views, schedule, hooks and metric."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import HOOKS, PARAM_SCHEDULERS

from benchmarks.zoo_data import annotation_file, classes_of, leaves, point_at_small_data
from pipeline.config import load_config
from pipeline.data.images import Images
from pipeline.data.validation import check_validation
from pipeline.data.views import Views
from pipeline.errors import ConfigError, PipelineError, brief
from pipeline.mmdet_compat.registry import Config, build
from pipeline.sections import Sections
from pipeline.stage2.resume import check_starting_weights
from pipeline.stage2.settings import check_training

SECTIONS = """
teacher = dict(config="teacher.py", checkpoint="teacher.pth")
views = dict(seed=520)
cache = dict(dir="cache")
distill = dict(feature_weight=0.005, score_weight=0.02)
"""
DRAWS = 2  # views.count where transforms draw from ranges


def outcome(found: dict[str, Any], name: str, check: Callable[[], Any]) -> Any:
    """Run a check and return its value. Record what stopped it: a refusal's line, or a fault (any other exception)."""
    try:
        value = check()
    except PipelineError as error:
        found[name] = ["refused", str(error)]
    except Exception as error:
        found[name] = ["fault", brief(error)]
    else:
        found[name] = None
        return value
    return None


def read_config(path: Path, folder: Path, more: str = "") -> tuple[Config, Sections]:
    """Load a config of the zoo as a user does: as `_base_` of a config with the four sections. more: replaces some."""
    own = folder / "config.py"
    own.write_text(f"_base_ = {str(path)!r}\n{SECTIONS}{more}")
    return load_config(str(own))


def check_settings(cfg: Config, folder: Path) -> dict[str, Any]:
    """Return the outcomes of all checks that need no detector."""
    cfg, found = copy.deepcopy(cfg), dict[str, Any]()
    for loader in ("train_dataloader", "val_dataloader"):
        point_at_small_data((cfg.get(loader) or {}).get("dataset"), folder)
    inner = leaves(cfg.train_dataloader.dataset)[0]
    outcome(found, "data", lambda: Images(cfg.train_dataloader.dataset))
    steps = cfg.train_dataloader.dataset.get("pipeline") or inner.get("pipeline")
    views = outcome(found, "views", lambda: views_of(steps))
    if views is not None:
        outcome(found, "replay", lambda: replay_twice({**inner, "pipeline": steps}, folder))
    outcome(found, "schedule", lambda: check_schedule(cfg))
    outcome(found, "hooks", lambda: check_hooks(cfg))
    outcome(found, "metric", lambda: check_metric(cfg, classes_of(inner), folder))
    return found


def views_of(steps: Any) -> Views:
    """Recognise the views of a pipeline, with a number of draws where it needs one."""
    steps = [dict(step) for step in steps]
    try:
        return Views(steps, 520, None)
    except ConfigError as error:
        if "views.count: missing" not in str(error):
            raise
        return Views(steps, 520, DRAWS)


def replay_twice(dataset: dict[str, Any], folder: Path) -> None:
    """Replay views of each image with two objects. Raise AssertionError where they differ in any bit."""
    names = classes_of(dataset)
    coco = {"type": "CocoDataset", "metainfo": {"classes": names}, "pipeline": dataset["pipeline"]}
    prefix = {"img": str(folder / "images"), "seg": str(folder / "maps")}
    images = Images({**coco, "ann_file": str(annotation_file(folder, names, 1)), "data_prefix": prefix})
    first, second = views_of(images.pipeline), views_of(images.pipeline)
    for image in images.ids:
        info = images.info(image)
        for view in range(min(first.count, DRAWS)):
            planned = first.pad_shape(info, view)
            if planned is None:  # no box is left
                continue
            pixels, sample, record = first.replay(info, view)
            again, other, same = second.replay(info, view)
            if not torch.equal(pixels, again) or record.boxes != same.boxes:
                raise AssertionError(f"view {view} of image {image} differs in its second replay")
            for name in {"bboxes", "labels"} & set(sample.gt_instances.keys()):
                values = [getattr(one.gt_instances, name) for one in (sample, other)]
                if not torch.equal(*(getattr(value, "tensor", value) for value in values)):
                    raise AssertionError(f"view {view} of image {image}: its {name} differ in its second replay")
            if planned != record.pad_shape:
                raise AssertionError(f"view {view} of image {image}: planned {planned}, found {record.pad_shape}")


def check_schedule(cfg: Config) -> None:
    """Check the training settings, and build the schedules for an optimizer of one weight."""
    check_training(cfg)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    given = cfg.get("param_scheduler") or []
    for one in given if isinstance(given, list) else [given]:
        settings = {key: value for key, value in one.items() if key != "convert_to_iter_based"}
        build(PARAM_SCHEDULERS, {**settings, "optimizer": optimizer}, "param_scheduler")


def check_hooks(cfg: Config) -> None:
    """Check and build the custom hooks."""
    check_starting_weights(Config({"model": {}, "custom_hooks": cfg.get("custom_hooks")}), None, None)  # type: ignore
    for hook in cfg.get("custom_hooks") or []:
        build(HOOKS, {key: value for key, value in hook.items() if key != "priority"}, f"hook {hook['type']}")


def check_metric(cfg: Config, classes: tuple[str, ...], folder: Path) -> None:
    """Check the val set and its metric."""
    evaluators = cfg.get("val_evaluator")
    for one in evaluators if isinstance(evaluators, list | tuple) else [evaluators]:
        if isinstance(one, dict) and "ann_file" in one:
            one["ann_file"] = str(annotation_file(folder, classes, 1))
    check_validation(cfg, classes)
