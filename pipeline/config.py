"""One config for both stages: mmdet's own keys stay as they are, ours stand beside them in four sections.

`teacher=` who teaches, `views=` what it sees, `cache=` where its outputs lie and how, `distill=` how a student learns
from them. Sections become frozen dataclasses here; config objects go no further down than this.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from pipeline.codecs.registry import codec_settings
from pipeline.errors import ConfigError, brief
from pipeline.losses.registry import FEATURE_LOSSES
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
    source: str = "cache"
    min_map: float = 0.2
    gate_images: int = 500
    tf32: bool = False


@dataclass(frozen=True)
class ViewsSection:
    """`count`: number of seeded draws where the transforms draw from ranges; finite sets of views count themselves."""

    seed: int = 520
    count: int | None = None
    check: str = "exact"
    tolerance: float = 8.0


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
    local_gb: float = 50.0
    codec: dict[str, Any] = field(default_factory=lambda: {"type": "frs"})
    passes: int | None = None
    batch_size: int = 8
    shard_samples: int = 256
    calibration_views: int = 256
    workers: int = 2
    quarantine: bool = False

    def place(self) -> Place:
        """Where the cache lives. Raises ConfigError."""
        return place(self.dir, plain(dict(self.store)), self.local, self.local_gb)


@dataclass(frozen=True)
class DistillSection:
    """Weights of the two losses, and the iterations over which both rise linearly from 0 (method.md's table).

    `score_weight=0` needs no class scores (`cache.codec.scores=False`), and may have other classes than the teacher.
    `feature_loss`: 'frs', 'pkd' or 'cwd'; the last two want a lossless cache or one of codec profile 'universal'.
    `inherit_from_teacher`: start the student's neck and head from the teacher's weights wherever shapes agree.
    """

    feature_weight: float
    score_weight: float
    warmup_iters: int = 500
    feature_loss: str = "frs"
    inherit_from_teacher: bool = False


@dataclass(frozen=True)
class Sections:
    teacher: TeacherSection
    views: ViewsSection
    cache: CacheSection
    distill: DistillSection


KINDS = {"teacher": TeacherSection, "views": ViewsSection, "cache": CacheSection, "distill": DistillSection}
# What mmengine's Runner and mmdet's tools read: --cfg-options may set these where a config does not have them.
RUNNER_KEYS = ("auto_scale_lr", "custom_hooks", "default_hooks", "env_cfg", "launcher", "load_from", "log_level",
               "log_processor", "optim_wrapper", "param_scheduler", "randomness", "resume", "visualizer")  # fmt: skip
NEEDED_DICTS = ("model", "model.backbone", "train_dataloader", "train_dataloader.dataset")
CHOICES = {
    "teacher.source": ("cache", "live"),
    "views.check": ("exact", "close"),
    "distill.feature_loss": tuple(FEATURE_LOSSES),
}
AT_LEAST = {
    "teacher.gate_images": 1, "views.count": 1, "views.tolerance": 0, "cache.passes": 1, "cache.batch_size": 1,
    "cache.shard_samples": 1, "cache.calibration_views": 1, "cache.workers": 0, "cache.local_gb": 0,
    "distill.warmup_iters": 0, "distill.feature_weight": 0, "distill.score_weight": 0, "teacher.min_map": 0,
    "views.seed": 0,
}  # fmt: skip


def suggest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(sorted(known))}" if len(known) <= 12 else "nothing in the config is named like it"


def section(name: str, values: Any) -> Any:
    """One of our sections as its dataclass. Raises ConfigError naming the key."""
    kind = KINDS[name]
    known = {f.name: f for f in fields(kind)}
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: expected a dict, found {type(values).__name__}")
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{name}.{key}: unknown key; {suggest(key, known)}")
        _check_value(f"{name}.{key}", str(known[key].type), value)
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    for key in missing:
        if key not in values:
            raise ConfigError(f"{name}.{key}: missing; add it to the config")
    return kind(**values)


def _check_value(where: str, kind: str, value: Any) -> None:
    wanted: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool, "dict[str, Any]": dict}
    if value is None and kind.endswith("| None"):
        return
    base = kind.removesuffix(" | None")
    if not isinstance(value, wanted[base]) or (isinstance(value, bool) and base != "bool"):
        raise ConfigError(f"{where}: expected {kind}, found {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number, found {value!r}")
    if where in CHOICES and value not in CHOICES[where]:
        raise ConfigError(f"{where}: expected one of {CHOICES[where]}, found {value!r}")
    if where in AT_LEAST and value < AT_LEAST[where]:
        raise ConfigError(f"{where}: expected at least {AT_LEAST[where]}, found {value!r}")


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
    found = {name: section(name, cfg.get(name, {})) for name in KINDS}
    sections = Sections(**found)
    if (sections.teacher.name is None) == (sections.teacher.config is None):
        raise ConfigError("teacher: give either name= (of mmdet's zoo) or config= (with checkpoint=)")
    codec_settings(plain(dict(sections.cache.codec)))
    sections.cache.place()
    return cfg, sections


def require_sections(cfg: Config, path: str) -> None:
    """The parts that both stages need are there and are dicts; a near miss of our four names is a typo."""
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
    """--cfg-options; mmengine would add an unknown key silently."""
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
    """`value` with every path below `old` now below `new`: in a config data_root is spelled out wherever it is used."""
    if isinstance(value, dict):
        return {key: moved(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(inner, old, new) for inner in value)
    if isinstance(value, str) and f"{value}/".startswith(f"{old.rstrip('/')}/"):
        return f"{new.rstrip('/')}/{value[len(old.rstrip('/')) :].lstrip('/')}"
    return value
