"""The config that both stages share: mmdet's own keys, and four sections that this project adds.

`teacher` is the detector to distill from. `views` defines the augmented views. `cache` says where and how the teacher's
outputs are stored. `distill` says how a student learns from them. This module checks each section once and converts it
to a frozen dataclass. Code below this module never receives a config object.
"""

from __future__ import annotations

import difflib
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.cache.existing import find_codec_type
from pipeline.codecs.frs2.settings import Frs2Options
from pipeline.codecs.registry import read_options
from pipeline.codecs.settings import CodecOptions
from pipeline.errors import ConfigError, brief
from pipeline.fields import read_settings, suggest
from pipeline.losses.registry import feature_losses
from pipeline.mmdet_compat.registry import Config, drop_own_scopes, plain
from pipeline.storage.place import Place
from pipeline.storage.urls import place


def check_indices(value: Any) -> str | None:
    """Return the expected values if a list of levels is empty or has values that are not integers."""
    sound = len(value) > 0 and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    return None if sound else "a list of integers"


@dataclass(frozen=True)
class TeacherSection:
    """The section `teacher`.

    Give either `name`, a model of mmdet's zoo, or the files `config` and `checkpoint`. A `checkpoint` given with `name`
    replaces the zoo's weights. `checkpoint` is a file or an http(s) URL, in any format that docs/checkpoints.md lists.
    `class_names`: 'same' compares the checkpoint's class names with the data set's, up to case, spaces, hyphens and
    underscores; 'any' accepts other names for the same number of classes.
    `features`: 'neck', or 'backbone' for the outputs of a detector's backbone alone. A detector without a neck gives
    those of its backbone in both cases. `type`: 'mmdet', or 'timm' for `name`, a model of timm, with `checkpoint`.
    `out_indices`: the blocks or stages of a backbone to use. A backbone alone has no class scores, so it needs
    `cache.codec=dict(scores=False)`, `distill.score_weight=0` and `min_map=0`.
    `min_map`: the COCO mAP, a fraction, that the teacher must reach before stage 1 caches anything. It is measured on
    `gate_images` images of the val set. `source`: where stage 2 gets the teacher's outputs, 'cache' or 'live'.
    """

    type: str = field(default="mmdet", metadata={"choices": ("mmdet", "timm")})
    name: str | None = None
    config: str | None = None
    checkpoint: str | None = None
    class_names: str = field(default="same", metadata={"choices": ("same", "any")})
    features: str = field(default="neck", metadata={"choices": ("neck", "backbone")})
    out_indices: list | tuple | None = field(default=None, metadata={"check": check_indices})
    source: str = field(default="cache", metadata={"choices": ("cache", "live")})
    min_map: float = field(default=0.2, metadata={"at_least": 0})
    gate_images: int = field(default=500, metadata={"at_least": 1})
    tf32: bool = False


@dataclass(frozen=True)
class ViewsSection:
    """The section `views`.

    `count`: the number of seeded draws, if a transform draws from a range. For a finite set of views, leave it out.
    """

    seed: int = field(default=520, metadata={"at_least": 0})
    count: int | None = field(default=None, metadata={"at_least": 1})
    check: str = field(default="exact", metadata={"choices": ("exact", "close")})
    tolerance: float = field(default=8.0, metadata={"at_least": 0})


def read_codec(values: dict[str, Any]) -> CodecOptions:
    """Read `cache.codec`. Raise ConfigError where it is invalid."""
    return read_options(plain(dict(values)))


@dataclass(frozen=True)
class CacheSection:
    """The section `cache`.

    `dir`: a path, or an s3://, gs://, az:// or http(s):// URL. http(s):// is read-only.
    `store`, for URLs: `endpoint`, `region` (s3), `skip_signature`, `timeout` and `connect_timeout` of one request,
    `retry_timeout` of all its retries, `max_retries`. Timeouts are in seconds. Credentials come from the environment,
    as obstore documents.
    `local`: a folder on this machine that caches remote reads for the next epoch, up to `local_gb` GB (10^9 bytes).
    `codec`: its `type` ('frs2', 'frs' or 'lossless') and the options of that type (pipeline/codecs). Without a `type`,
    a new cache gets frs2, and an existing cache keeps its own.
    `passes`: the number of passes that stage 1 makes (default: one for each view). `quarantine`: skip images that
    cannot be read, and list them in the cache. `images`: store the file of each image once in the cache, and train from
    these files, so that stage 2 needs no image folder.
    """

    dir: str
    store: dict[str, Any] = field(default_factory=dict)
    local: str | None = None
    local_gb: float = field(default=50.0, metadata={"at_least": 0})
    codec: CodecOptions = field(default_factory=Frs2Options, metadata={"parse": read_codec})
    passes: int | None = field(default=None, metadata={"at_least": 1})
    batch_size: int = field(default=8, metadata={"at_least": 1})
    shard_samples: int = field(default=256, metadata={"at_least": 1})
    calibration_views: int = field(default=256, metadata={"at_least": 1})
    workers: int = field(default=2, metadata={"at_least": 0})
    quarantine: bool = False
    images: bool = False

    def place(self) -> Place:
        """Return the folder or URL of the cache. Raise ConfigError where it is invalid."""
        return place(self.dir, plain(dict(self.store)), self.local, self.local_gb)


@dataclass(frozen=True)
class DistillSection:
    """The section `distill`: weights of the two losses, and the iterations over which both rise linearly from 0.

    `score_weight=0` needs no class scores in the cache (`cache.codec.scores=False`). The student may then have other
    classes than the teacher.
    `feature_loss`: 'frs', 'pkd', 'cwd', 'mgd' or a loss of another package (pipeline/losses/registry.py). All except
    'frs' need a lossless cache, or one of codec profile 'universal'.
    `box_weight`: of LD, the loss on GFL's box distributions; it needs a cache with `codec=dict(boxes=True)`,
    or `teacher.source='live'`.
    `student_levels`: the student's FPN level for each of the teacher's levels (default: the same number in order).
    `interpolate`: how the student's features are resized to the teacher's grids; without it, the grids must be equal.
    `adapter`: the convolution that maps the student's features to the teacher's width (default: that of the loss).
    `inherit_from_teacher`: initialise the student's neck and head with the teacher's weights wherever shapes agree.
    """

    feature_weight: float = field(metadata={"at_least": 0})
    score_weight: float = field(metadata={"at_least": 0})
    box_weight: float = field(default=0.0, metadata={"at_least": 0})
    warmup_iters: int = field(default=500, metadata={"at_least": 0})
    feature_loss: str = field(default="frs", metadata={"choices": feature_losses})
    student_levels: list | tuple | None = field(default=None, metadata={"check": check_indices})
    interpolate: str | None = field(default=None, metadata={"choices": ("nearest", "bilinear")})
    adapter: str | None = field(default=None, metadata={"choices": ("1x1", "3x3")})
    inherit_from_teacher: bool = False


@dataclass(frozen=True)
class Sections:
    """The four checked sections of a config."""

    teacher: TeacherSection
    views: ViewsSection
    cache: CacheSection
    distill: DistillSection


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
