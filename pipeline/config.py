"""One config for both stages: mmdet's own keys stay as they are, ours stand beside them in four sections.

`teacher=` the teacher, `views=` its views, `cache=` where its outputs are stored and how, `distill=` how a student
learns from them. Sections become frozen dataclasses here, checked once; config objects go no further down.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.codecs.frs.settings import FrsOptions
from pipeline.codecs.registry import read_options
from pipeline.codecs.settings import CodecOptions
from pipeline.errors import ConfigError, brief
from pipeline.fields import read_settings, suggest
from pipeline.losses.registry import feature_losses
from pipeline.mmdet_compat.registry import Config, plain
from pipeline.storage.place import Place
from pipeline.storage.urls import place


@dataclass(frozen=True)
class TeacherSection:
    """`name` of mmdet's zoo, or `config` and `checkpoint` files (a checkpoint also overrides the zoo's weights).

    `min_map`: COCO mAP, a fraction, that the teacher must reach on `gate_images` of the val set before anything is
    cached. `source`: where stage 2 gets the teacher's outputs, 'cache' or 'live'.
    """

    name: str | None = None
    config: str | None = None
    checkpoint: str | None = None
    source: str = field(default="cache", metadata={"choices": ("cache", "live")})
    min_map: float = field(default=0.2, metadata={"at_least": 0})
    gate_images: int = field(default=500, metadata={"at_least": 1})
    tf32: bool = False


@dataclass(frozen=True)
class ViewsSection:
    """`count`: number of seeded draws where the transforms draw from ranges; finite sets of views count themselves."""

    seed: int = field(default=520, metadata={"at_least": 0})
    count: int | None = field(default=None, metadata={"at_least": 1})
    check: str = field(default="exact", metadata={"choices": ("exact", "close")})
    tolerance: float = field(default=8.0, metadata={"at_least": 0})


def read_codec(values: dict[str, Any]) -> CodecOptions:
    """Read `cache.codec`. Raises ConfigError."""
    return read_options(plain(dict(values)))


@dataclass(frozen=True)
class CacheSection:
    """`passes`: how many passes stage 1 makes (default: one for each view). `quarantine`: go on past broken images.

    `dir`: a path or an s3://, gs://, az:// or http(s):// URL (http can only be read). `store`, for URLs: `endpoint`,
    `region` (s3), `skip_signature`; `timeout` and `connect_timeout` of a request, `retry_timeout` over its retries
    (seconds), `max_retries`. Credentials come from the environment, as obstore documents. `local`: a folder of this
    machine that keeps what stage 2 read from a URL for the next epoch, up to `local_gb` GB (10^9 bytes).
    """

    dir: str
    store: dict[str, Any] = field(default_factory=dict)
    local: str | None = None
    local_gb: float = field(default=50.0, metadata={"at_least": 0})
    codec: CodecOptions = field(default_factory=FrsOptions, metadata={"parse": read_codec})
    passes: int | None = field(default=None, metadata={"at_least": 1})
    batch_size: int = field(default=8, metadata={"at_least": 1})
    shard_samples: int = field(default=256, metadata={"at_least": 1})
    calibration_views: int = field(default=256, metadata={"at_least": 1})
    workers: int = field(default=2, metadata={"at_least": 0})
    quarantine: bool = False

    def place(self) -> Place:
        """Open the folder or URL of the cache. Raises ConfigError."""
        return place(self.dir, plain(dict(self.store)), self.local, self.local_gb)


@dataclass(frozen=True)
class DistillSection:
    """Weights of the two losses, and the iterations over which both rise linearly from 0 (method.md's table).

    `score_weight=0` needs no class scores (`cache.codec.scores=False`), and may have other classes than the teacher.
    `feature_loss`: 'frs', 'pkd', 'cwd' or a loss of another package (pipeline/losses/registry.py). All but 'frs' need a
    lossless cache or one of codec profile 'universal'.
    `inherit_from_teacher`: start the student's neck and head from the teacher's weights wherever shapes agree.
    """

    feature_weight: float = field(metadata={"at_least": 0})
    score_weight: float = field(metadata={"at_least": 0})
    warmup_iters: int = field(default=500, metadata={"at_least": 0})
    feature_loss: str = field(default="frs", metadata={"choices": feature_losses})
    inherit_from_teacher: bool = False


@dataclass(frozen=True)
class Sections:
    """The four sections, checked."""

    teacher: TeacherSection
    views: ViewsSection
    cache: CacheSection
    distill: DistillSection


KINDS = {"teacher": TeacherSection, "views": ViewsSection, "cache": CacheSection, "distill": DistillSection}
# What mmengine's Runner and mmdet's tools read: --cfg-options may set these where a config does not have them.
RUNNER_KEYS = (
    *("auto_scale_lr", "custom_hooks", "default_hooks", "env_cfg", "launcher", "load_from", "log_level"),
    *("log_processor", "optim_wrapper", "param_scheduler", "randomness", "resume", "visualizer"),
)
NEEDED_DICTS = ("model", "model.backbone", "train_dataloader", "train_dataloader.dataset")


def load_config(path: str, options: dict[str, Any] | None = None) -> tuple[Config, Sections]:
    """Read a config file, apply --cfg-options, check our sections.

    Raises ConfigError: no such file, not a config, unknown key, value out of range.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such config file")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program: anything may go wrong inside it
        raise ConfigError(f"{path}: cannot be read as a config: {brief(error)}") from error
    apply_options(cfg, options or {})
    require_sections(cfg, path)
    sections = Sections(**{name: read_settings(kind, cfg.get(name, {}), name) for name, kind in KINDS.items()})
    if (sections.teacher.name is None) == (sections.teacher.config is None):
        raise ConfigError("teacher: give either name= (of mmdet's zoo) or config= (with checkpoint=)")
    sections.cache.place()
    return cfg, sections


def require_sections(cfg: Config, path: str) -> None:
    """Refuse a config that lacks what both stages need, or has a section whose name is a typo. Raises ConfigError."""
    for key in cfg:
        close = difflib.get_close_matches(key, KINDS, n=1, cutoff=0.8)
        if close and key not in KINDS:
            raise ConfigError(f"{path}: unknown key {key!r}; did you mean {close[0]!r}?")
    for needed in ("model", "train_dataloader", *KINDS):
        if needed not in cfg and needed != "views":
            raise ConfigError(f"{path}: section {needed!r} is missing")
    for path_ in NEEDED_DICTS:
        value: Any = cfg
        for key in path_.split("."):
            value = value.get(key) if isinstance(value, dict | Config) else None
        if not isinstance(value, dict):
            raise ConfigError(f"{path_}: expected a dict, found {value!r:.60}")


def apply_options(cfg: Config, options: dict[str, Any]) -> None:
    """Merge --cfg-options. Refuse unknown keys, which mmengine would add silently. Raises ConfigError."""
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
        cfg.merge_from_dict(moved({key: cfg[key] for key in cfg}, old, str(options["data_root"])))


def moved(value: Any, old: str, new: str) -> Any:
    """Move every path in `value` from below `old` to below `new`: a config repeats data_root wherever it is used."""
    if isinstance(value, dict):
        return {key: moved(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(inner, old, new) for inner in value)
    if isinstance(value, str) and f"{value}/".startswith(f"{old.rstrip('/')}/"):
        return f"{new.rstrip('/')}/{value[len(old.rstrip('/')) :].lstrip('/')}"
    return value
