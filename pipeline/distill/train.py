"""Stage 2: ordinary mmengine training of a wrapped student, fed by the cache."""

from __future__ import annotations

import copy
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.runner import Runner, find_latest_checkpoint

from pipeline.cache.cache import Cache
from pipeline.cache.files import sha256_file, write_json
from pipeline.cache.plan import references
from pipeline.codec import load_codec
from pipeline.config import Sections
from pipeline.data import Images, annotation_path, check_annotations
from pipeline.distill.checkpoint import StreamHook, StudentCheckpoint
from pipeline.distill.distiller import Distiller
from pipeline.distill.sources import CachedTeacher, LiveTeacher, TeacherSource
from pipeline.errors import CacheError, ConfigError, StudentError
from pipeline.mm import MODELS, Config, build, config_errors
from pipeline.planning import layout_of, plan_views
from pipeline.recipe import make_recipe
from pipeline.stream import Stream, StreamSource, stream_loader
from pipeline.teacher import Teacher, find_teacher
from pipeline.teacher.heads import class_count, output_shapes
from pipeline.teacher.weights import read_checkpoint
from pipeline.views import Views

BATCH_MIXING = "data_preprocessor.batch_augments"


@dataclass
class Lesson:
    """What a student is taught from: the stream's source, the teacher's outputs, and where they came from."""

    stream: StreamSource
    teacher: TeacherSource
    levels: int
    channels: int
    score_channels: int
    provenance: dict[str, Any]


def prepare_lesson(cfg: Config, sections: Sections) -> Lesson:
    """Open the cache (or build the live teacher) and check that it is this config's. Raises PipelineError."""
    images = Images(cfg.train_dataloader.dataset)
    views = Views(images.pipeline, sections.views.seed, sections.views.count)
    return (live_lesson if sections.teacher.source == "live" else cached_lesson)(sections, images, views)


def cached_lesson(sections: Sections, images: Images, views: Views) -> Lesson:
    spec = find_teacher(sections.teacher)
    cache = Cache(sections.cache.dir)
    # The weights need not be there any more; where they are, they must be those of the cache.
    weights = sha256_file(spec.checkpoint) if spec.checkpoint.is_file() else None
    cache.require(make_recipe(sections, images, views, spec), weights)
    passes = {number: cache.references(number) for number in cache.passes()}
    if not passes:
        raise CacheError(f"{cache.root}: no pass is complete yet; run stage 1 again, it goes on where it stopped")
    made_with = {number: cache.manifest(number)["environment"] for number in passes}
    codec = load_codec(cache.root, cache.codec_manifest())
    source = StreamSource(passes, images, views, cache, sections.views.check, sections.views.tolerance, made_with)
    levels = cache.shard(*next((r.cache_pass, r.shard) for p in passes.values() for s in p for r in s))
    provenance = {"teacher": "cache", "content": cache.content(), "recipe": cache.plan["recipe_digest"]}
    return Lesson(
        source, CachedTeacher(codec), levels.attributes["levels"], codec.channels, codec.score_channels,
        {**provenance, "views_check": sections.views.check},
    )  # fmt: skip


def live_lesson(sections: Sections, images: Images, views: Views) -> Lesson:
    """The teacher in the loop, on the very batches that a cache would give."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = Teacher(find_teacher(sections.teacher), images.classes, device, sections.teacher.tf32)
    layout = layout_of(sections)
    numbers = range(sections.cache.passes or views.count)
    passes = {n: references(plan_views(images, views, n, layout), n) for n in numbers}
    source = StreamSource(passes, images, views, None, "exact", 0.0, {})
    levels, channels, scores = output_shapes(teacher.detector, (128, 128))
    return Lesson(source, LiveTeacher(teacher), len(levels), channels, scores, {"teacher": "live", "content": None})


def check_training(cfg: Config) -> None:
    """Refuse what would silently train on something else than the cached views."""
    for key in ("val_dataloader", "val_evaluator", "optim_wrapper", "train_cfg"):
        if key not in cfg:
            raise ConfigError(f"{key}: missing in the config; stage 2 trains and evaluates a student")
    if not cfg.train_cfg.get("by_epoch", True) or cfg.train_cfg.get("type", "EpochBasedTrainLoop") not in (
        "EpochBasedTrainLoop",
    ):
        raise ConfigError("train_cfg: expected an epoch-based loop: an epoch is one pass of the cache")
    preprocessor = cfg.model.get("data_preprocessor", {})
    if preprocessor.get("batch_augments"):
        raise ConfigError(f"model.{BATCH_MIXING}: changes images after the view was checked; remove it")
    if preprocessor.get("pad_size_divisor", 1) % 32:
        raise ConfigError(
            "model.data_preprocessor.pad_size_divisor: expected a multiple of 32, as the views were padded for the "
            f"teacher, found {preprocessor.get('pad_size_divisor', 1)}"
        )
    check_annotations(annotation_path(cfg.val_dataloader.dataset), None)


def build_runner(cfg: Config, sections: Sections, lesson: Lesson) -> tuple[Runner, StreamHook]:
    """mmengine's Runner around a Distiller and a Stream."""
    batch_size = cfg.train_dataloader.get("batch_size")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"train_dataloader.batch_size: expected a whole number above 0, found {batch_size!r}")
    student = build(MODELS, cfg.model, "model")
    count = class_count(student)
    if count != len(lesson.stream.images.classes):
        raise StudentError(
            f"student predicts {count} classes, the data set and the cache have {len(lesson.stream.images.classes)}"
        )
    model = Distiller(
        student, lesson.teacher, sections.distill, lesson.levels, lesson.channels, lesson.score_channels
    )  # fmt: skip
    stream = Stream(lesson.stream, batch_size, seed=(cfg.get("randomness") or {}).get("seed") or 0)
    hook = StreamHook()
    hooks = copy.deepcopy(dict(cfg.get("default_hooks") or {}))
    hooks["sampler_seed"] = None  # there is no sampler: the stream's schedule is a function of the epoch
    with config_errors("stage 2's runner"):
        runner = Runner(
            model=model,
            work_dir=cfg.work_dir,
            train_dataloader=stream_loader(stream, cfg.train_dataloader.get("num_workers", 0)),
            default_hooks=hooks,
            custom_hooks=[*(cfg.get("custom_hooks") or []), hook, StudentCheckpoint(lesson.provenance)],
            cfg=cfg,
            **{key: cfg.get(key) for key in (
                "val_dataloader", "train_cfg", "val_cfg", "val_evaluator", "optim_wrapper", "param_scheduler", "load_from",
                "log_processor", "visualizer",
            )},
            resume=cfg.get("resume", False),
            launcher=cfg.get("launcher", "none"),
            env_cfg=cfg.get("env_cfg") or {"dist_cfg": {"backend": "nccl"}},
            log_level=cfg.get("log_level", "INFO"),
            default_scope="mmdet",
            randomness=cfg.get("randomness") or {"seed": None},
        )  # fmt: skip
        stream.set_rank(get_rank(), get_world_size())
        # Built here rather than inside train(), where a config's mistake could not be told from a bug.
        assert runner.train_loop is not None and runner.val_loop is not None
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        if runner.param_schedulers is not None:
            runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    return runner, hook


def apply_flags(
    cfg: Config, path: str, work_dir: str | None, resume: str | None, amp: bool, auto_scale_lr: bool, launcher: str
) -> None:
    """mmdet's command-line flags, written into the config as mmdet's own tools/train.py does."""
    cfg.work_dir = work_dir or cfg.get("work_dir") or f"work_dirs/{Path(path).stem}"
    cfg.launcher = launcher
    if amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.loss_scale = "dynamic"
    if resume:
        cfg.resume, cfg.load_from = True, None if resume == "auto" else resume
    if auto_scale_lr:
        base = (cfg.get("auto_scale_lr") or {}).get("base_batch_size")
        if not base:
            raise ConfigError("--auto-scale-lr: the config gives no auto_scale_lr.base_batch_size")
        world = int(os.environ.get("WORLD_SIZE", "1"))
        cfg.optim_wrapper.optimizer.lr *= world * cfg.train_dataloader.batch_size / base


def check_checkpoint(cfg: Config) -> None:
    """Refuse a start checkpoint that is not plain data before mmengine opens it (it would unpickle anything)."""
    path = cfg.get("load_from")
    if cfg.get("resume") and path is None:
        path = find_latest_checkpoint(cfg.work_dir)
    if path:
        read_checkpoint(Path(path))


def train_student(cfg: Config, sections: Sections) -> dict[str, Any]:
    """Train and evaluate. Returns the summary (mAP, AP50 as fractions). Raises PipelineError."""
    check_training(cfg)
    lesson = prepare_lesson(cfg, sections)
    check_checkpoint(cfg)
    begun = time.perf_counter()
    runner, hook = build_runner(cfg, sections, lesson)
    runner.train()
    trained = time.perf_counter() - begun
    if hook.metrics is None:  # a finished run that was resumed validates nothing by itself
        runner.val()
    # Without a single detection mmdet's metric reports nothing at all.
    metrics = hook.metrics or {}
    summary = {
        "mAP": metrics.get("bbox_mAP", 0.0),
        "AP50": metrics.get("bbox_mAP_50", 0.0),
        "epochs": runner.epoch,
        "iterations": runner.iter,
        "images": hook.images * get_world_size(),
        "seconds": round(trained, 2),
        "images_per_second": round(hook.images * get_world_size() / trained, 2),
        "work_dir": str(cfg.work_dir),
        **lesson.provenance,
    }
    if is_main_process():
        write_json(Path(cfg.work_dir) / "summary.json", summary)
    return summary
