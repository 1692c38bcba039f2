"""Check the hooks of a config before training: those made for a bare detector, or for a data set that is not cached.

Hooks run against the student: the distiller looks up what it lacks in the student.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import HOOKS, Config, type_name

REFUSED = {
    "PipelineSwitchHook": "switches the data pipeline during training, but cached views have one pipeline; remove it",
    "MeanTeacherHook": "averages a detector with a teacher inside it; use EMAHook for an averaged student",
    "DistSamplerSeedHook": "seeds a sampler, and training from a cache has none; remove it",
}


def configured_hooks(cfg: Config) -> Iterator[tuple[str, set[str], dict[str, Any]]]:
    """Yield (name, names of its class and of the classes that it extends, settings) of every hook that a config runs.

    mmdet's default_runtime.py has a `sampler_seed`, which build_runner leaves out.
    """
    defaults = {key: hook for key, hook in (cfg.get("default_hooks") or {}).items() if key != "sampler_seed"}
    for hook in [*(cfg.get("custom_hooks") or []), *defaults.values()]:
        kind = hook.get("type") if isinstance(hook, dict) else None
        if kind is not None:
            found = kind if isinstance(kind, type) else HOOKS.get(type_name(kind))
            yield type_name(kind), {parent.__name__ for parent in getattr(found, "__mro__", ())}, hook


def check_hooks(cfg: Config, student: nn.Module, pipeline: Sequence[dict[str, Any]]) -> None:
    """Raise ConfigError for a hook that cannot work on this student or on cached views. pipeline: the views' rule."""
    cached = {type_name(step["type"]) for step in pipeline}
    for name, classes, settings in configured_hooks(cfg):
        for refused in classes & REFUSED.keys():
            raise ConfigError(f"hook {name}: {REFUSED[refused]}")
        if "SetEpochInfoHook" in classes and not callable(getattr(student, "set_epoch", None)):
            raise ConfigError(f"hook {name}: {type(student).__name__} has no method set_epoch; remove the hook")
        if "YOLOXModeSwitchHook" in classes:
            _check_mode_switch(name, settings, student, cached)


def _check_mode_switch(name: str, settings: dict[str, Any], student: nn.Module, cached: set[str]) -> None:
    if getattr(student, "bbox_head", None) is None:
        raise ConfigError(f"hook {name}: {type(student).__name__} has no bbox_head; remove the hook")
    removed = cached & {type_name(key) for key in settings.get("skip_type_keys") or ("Mosaic", "RandomAffine", "MixUp")}
    if removed:
        raise ConfigError(
            f"hook {name}: would turn off {sorted(removed)[0]} during training, but the cached views always have it; "
            "remove the transform or the hook"
        )
