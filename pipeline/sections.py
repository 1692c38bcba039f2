"""The four sections that this project adds to mmdet's configs, each checked once and frozen.

`teacher` is the detector to distill from. `views` defines the augmented views. `cache` says where and how the teacher's
outputs are stored. `distill` says how a student learns from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.codecs.frs2.settings import Frs2Options
from pipeline.codecs.registry import read_options
from pipeline.codecs.settings import CodecOptions
from pipeline.losses.registry import feature_losses
from pipeline.mmdet_compat.registry import plain
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
