"""Check the hooks of a config before training: those made for a bare detector, or for a data set that is not cached.

Hooks run against the student: the distiller looks up what it lacks in the student.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from pipeline.data.validation import coco_metric
from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import HOOKS, Config, type_name

ITEMS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")  # that CocoMetric reports of boxes
REFUSED = {
    "PipelineSwitchHook": "switches the data pipeline during training, but cached views have one pipeline; remove it",
    "MeanTeacherHook": "averages a detector with a teacher inside it; use EMAHook for an averaged student",
    "DistSamplerSeedHook": "seeds a sampler, and training from a cache has none; remove it",
}


def configured_hooks(cfg: Config) -> Iterator[tuple[str, set[str], dict[str, Any]]]:
    """Yield (name, names of its class and of the classes that it extends, settings) of every hook that a config runs.

    mmdet's default_runtime.py has a `sampler_seed`, which build_runner leaves out.
    """
    custom, default = cfg.get("custom_hooks") or [], cfg.get("default_hooks") or {}
    if not isinstance(custom, list | tuple) or not isinstance(default, dict):
        raise ConfigError("custom_hooks, default_hooks: expected a list of dicts and a dict of dicts")
    hooks: list[Any] = [*custom, *(hook for key, hook in default.items() if key != "sampler_seed")]
    for hook in hooks:
        if hook is not None and not isinstance(hook, dict | str | type):
            name = type(hook).__name__
            raise ConfigError(f"hook {name}: found an object, which cannot be logged; write dict(type='{name}', ...)")
        kind = hook.get("type") if isinstance(hook, dict) else None
        if isinstance(hook, dict) and kind is not None:
            found = kind if isinstance(kind, type) else HOOKS.get(type_name(kind))
            yield type_name(kind), {parent.__name__ for parent in getattr(found, "__mro__", ())}, hook


def check_hooks(cfg: Config, student: nn.Module, pipeline: Sequence[dict[str, Any]]) -> None:
    """Raise ConfigError for a hook that cannot work on this student or on cached views. pipeline: the views' rule."""
    cached = {type_name(step["type"]) for step in pipeline}
    for name, classes, settings in configured_hooks(cfg):
        if "CheckpointHook" in classes:
            _check_saving(cfg, name, settings)
        for refused in classes & REFUSED.keys():
            raise ConfigError(f"hook {name}: {REFUSED[refused]}")
        if "SetEpochInfoHook" in classes and not callable(getattr(student, "set_epoch", None)):
            raise ConfigError(f"hook {name}: {type(student).__name__} has no method set_epoch; remove the hook")
        if "YOLOXModeSwitchHook" in classes:
            _check_mode_switch(name, settings, student, cached)


def _check_saving(cfg: Config, name: str, settings: dict[str, Any]) -> None:
    """Raise ConfigError for settings of a CheckpointHook that fail only after an epoch."""
    interval = settings.get("interval", -1)
    if type(interval) is not int:
        raise ConfigError(f"hook {name}: interval: expected a whole number, found {interval!r:.40}")
    best, metrics = settings.get("save_best") or [], cfg.get("val_evaluator")
    if isinstance(metrics, list | tuple) and len(metrics) > 1:  # other metrics report names that are not known here
        return
    prefix, known = coco_metric(metrics).get("prefix") or "coco", coco_metric(metrics).get("metric_items") or ITEMS
    names = [f"{prefix}/bbox_{item}" for item in known]
    for wanted in [best] if isinstance(best, str) else best:
        if wanted not in ("auto", *names) and not str(wanted).endswith("_precision") and "segm" not in str(wanted):
            raise ConfigError(f"hook {name}: save_best: expected 'auto' or one of {names}, found {wanted!r:.60}")


def _check_mode_switch(name: str, settings: dict[str, Any], student: nn.Module, cached: set[str]) -> None:
    if getattr(student, "bbox_head", None) is None:
        raise ConfigError(f"hook {name}: {type(student).__name__} has no bbox_head; remove the hook")
    removed = cached & {type_name(key) for key in settings.get("skip_type_keys") or ("Mosaic", "RandomAffine", "MixUp")}
    if removed:
        raise ConfigError(
            f"hook {name}: would turn off {sorted(removed)[0]} during training, but the cached views always have it; "
            "remove the transform or the hook"
        )
