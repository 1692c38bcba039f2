"""Read the config that both stages share: mmdet's own keys, and the four sections of sections.py.

Each section is converted once to a frozen dataclass. Code below this module never receives a config object.
"""

from __future__ import annotations

import difflib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.cache.existing import find_codec_type
from pipeline.errors import ConfigError, brief
from pipeline.fields import read_settings, suggest
from pipeline.mmdet_compat.registry import Config, drop_own_scopes
from pipeline.sections import CacheSection, DistillSection, Sections, TeacherSection, ViewsSection, read_codec
from pipeline.storage.place import Place

KINDS = {"teacher": TeacherSection, "views": ViewsSection, "cache": CacheSection, "distill": DistillSection}
# Keys that mmengine's Runner and mmdet's tools read. --cfg-options may set them even if the config lacks them.
RUNNER_KEYS = (
    *("auto_scale_lr", "custom_hooks", "default_hooks", "env_cfg", "launcher", "load_from", "log_level"),
    *("log_processor", "optim_wrapper", "param_scheduler", "randomness", "resume", "visualizer", "work_dir"),
)
NEEDED_DICTS = ("model", "model.backbone", "train_dataloader", "train_dataloader.dataset")


def load_config(path: str, options: dict[str, Any] | None = None) -> tuple[Config, Sections]:
    """Read a config file, apply --cfg-options, and check the four sections.

    Raise ConfigError where the file is missing or not a config, a key is unknown, or a value is out of range.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such config file")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program, so it can raise any exception
        raise ConfigError(f"{path}: cannot be read as a config: {brief(error)}") from error
    apply_options(cfg, options or {})
    drop_own_scopes(cfg._cfg_dict)
    require_sections(cfg, path)
    sections = Sections(**{name: read_settings(kind, cfg.get(name, {}), name) for name, kind in KINDS.items()})
    check_teacher(sections.teacher)
    root, codec = sections.cache.place(), cfg.cache.get("codec", {})
    if "type" not in codec and sections.teacher.source == "cache":
        sections = replace(sections, cache=keep_codec_type(sections.cache, root, codec))
    return cfg, sections


def keep_codec_type(section: CacheSection, root: Place, codec: dict[str, Any]) -> CacheSection:
    """Return the section with the codec type of the cache that is there already. Raise StoreError.

    codec: `cache.codec` of the config, which names no type. Where its keys do not fit that type, comparing the recipes
    says what differs.
    """
    kind = find_codec_type(root)
    if kind is None or kind == section.codec.type:
        return section
    with suppress(ConfigError):
        return replace(section, codec=read_codec({"type": kind, **codec}))
    return section


def check_teacher(section: TeacherSection) -> None:
    """Raise ConfigError where keys of the section `teacher` do not fit together."""
    if (section.name is None) == (section.config is None):
        raise ConfigError("teacher: set either name= (a model of mmdet's zoo) or config= (with checkpoint=)")
    if section.type == "timm" and (section.name is None or section.checkpoint is None):
        raise ConfigError("teacher: type='timm' needs name= (a model of timm) and checkpoint= (its weights)")
    if section.out_indices is not None and section.type == "mmdet" and section.features == "neck":
        raise ConfigError("teacher.out_indices: chooses outputs of a backbone; set teacher.features='backbone'")


def require_sections(cfg: Config, path: str) -> None:
    """Raise ConfigError where a config lacks a section that both stages need, or misspells a section's name."""
    for key in cfg:
        close = difflib.get_close_matches(key, KINDS, n=1, cutoff=0.8)
        if close and key not in KINDS:
            raise ConfigError(f"{path}: unknown key {key!r}; did you mean {close[0]!r}?")
    for needed in ("model", "train_dataloader", *KINDS):
        if needed not in cfg and needed != "views":
            raise ConfigError(f"{path}: section {needed!r} is missing")
    for dotted in NEEDED_DICTS:
        value: Any = cfg
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict | Config) else None
        if not isinstance(value, dict):
            raise ConfigError(f"{dotted}: expected a dict, found {value!r:.60}")


def apply_options(cfg: Config, options: dict[str, Any]) -> None:
    """Merge --cfg-options into a config. Raise ConfigError for an unknown key, which mmengine would add silently."""
    for key in options:
        top = key.split(".")[0]
        known = {*cfg.keys(), *KINDS, *RUNNER_KEYS}
        if top not in known:
            raise ConfigError(f"--cfg-options {key}: unknown key; {suggest(top, known)}")
    old = cfg.get("data_root")
    try:
        cfg.merge_from_dict(options)
    except Exception as error:
        raise ConfigError(f"--cfg-options: {brief(error)}") from error
    if "data_root" in options and isinstance(old, str):
        cfg.merge_from_dict(replace_root({key: cfg[key] for key in cfg}, old, str(options["data_root"])))


def replace_root(value: Any, old: str, new: str) -> Any:
    """Return `value` with the folder `old` replaced by `new` in every path.

    mmdet's configs repeat data_root in each path, so a new data_root must be applied to all of them.
    """
    if isinstance(value, dict):
        return {key: replace_root(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(replace_root(inner, old, new) for inner in value)
    if isinstance(value, str) and f"{value}/".startswith(f"{old.rstrip('/')}/"):
        return f"{new.rstrip('/')}/{value[len(old.rstrip('/')) :].lstrip('/')}"
    return value
