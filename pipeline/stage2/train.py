"""Stage 2: ordinary mmengine training of a wrapped student, fed by the cache."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed
from torch import distributed

from pipeline.cache.canonical import write_report
from pipeline.config import Sections
from pipeline.data.images import image_errors
from pipeline.data.stream import Stream, stream_loader
from pipeline.errors import ConfigError, StudentError
from pipeline.mmdet_compat.registry import MODELS, Config, build, config_errors
from pipeline.stage2.checkpoint import StreamHook, StudentCheckpoint, WholeCheckpointHook
from pipeline.stage2.distiller import Distiller
from pipeline.stage2.inherit import InheritHook
from pipeline.stage2.loop import ExactTrainLoop
from pipeline.stage2.resume import check_start, find_start, guard_loading
from pipeline.stage2.settings import check_training
from pipeline.stage2.teacher_data import Lesson, prepare_lesson
from pipeline.teacher.heads import class_count
from pipeline.teacher.model import own_device
from pipeline.teacher.zoo import find_teacher

# Handed to mmengine's Runner as the config has them.
PASSED_ON = ("val_dataloader", "val_cfg", "val_evaluator", "optim_wrapper", "param_scheduler", "load_from",
             "log_processor", "visualizer")  # fmt: skip


def join_processes(cfg: Config) -> None:
    """Set up torch.distributed where mmengine cannot: its launcher and its wrapper take CUDA devices for granted."""
    if cfg.get("launcher", "none") == "pytorch" and not torch.cuda.is_available():
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
        wrapper = {"type": "MMDistributedDataParallel", "device_ids": None, "broadcast_buffers": False}
        cfg.setdefault("model_wrapper_cfg", wrapper)


def inheriting(cfg: Config, sections: Sections) -> list[InheritHook]:
    """The hook that a config asks for; the weights must be there before the cache is compared with them."""
    if not sections.distill.inherit_from_teacher:
        return []
    if cfg.get("load_from") and not cfg.get("resume"):
        raise ConfigError("distill.inherit_from_teacher and load_from both say where the head starts; drop one")
    return [InheritHook(find_teacher(sections.teacher).weights())]


def build_runner(
    cfg: Config, sections: Sections, lesson: Lesson, more_hooks: Sequence[Hook] = ()
) -> tuple[Runner, StreamHook]:
    """mmengine's Runner around a Distiller and a Stream."""
    batch_size = cfg.train_dataloader.get("batch_size")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"train_dataloader.batch_size: expected a whole number above 0, found {batch_size!r}")
    seed = (cfg.get("randomness") or {}).get("seed")
    if seed is not None:
        with config_errors("randomness.seed"):
            set_random_seed(seed)  # mmengine's Runner does so too late for the adapters
    student = build(MODELS, cfg.model, "model")
    count = class_count(student)
    if count not in (None, len(lesson.stream.images.classes)):
        raise StudentError(
            f"student predicts {count} classes, the data set and the cache have {len(lesson.stream.images.classes)}"
        )
    find_start(cfg)
    check_start(cfg, student, lesson.provenance["content"])
    guard_loading()
    if own_device().type == "cpu":  # a sixth faster there; results differ in the last digits only
        student.to(memory_format=torch.channels_last)
    model = Distiller(
        student, lesson.teacher, sections.distill, lesson.levels, lesson.channels, lesson.score_channels
    )  # fmt: skip
    join_processes(cfg)
    stream = Stream(lesson.stream, batch_size, seed=seed or 0)
    hook = StreamHook()
    hooks = copy.deepcopy(dict(cfg.get("default_hooks") or {}))
    saving = hooks.get("checkpoint")
    if isinstance(saving, dict) and saving.get("type") == "CheckpointHook":
        hooks["checkpoint"] = {**saving, "type": WholeCheckpointHook.__name__}
    exact_settings = {key: value for key, value in cfg.train_cfg.items() if key not in ("type", "by_epoch")}
    hooks["sampler_seed"] = None  # there is no sampler: the stream's schedule is a function of the epoch
    with config_errors("stage 2's runner"):
        runner = Runner(
            model=model,
            work_dir=cfg.work_dir,
            train_dataloader=stream_loader(stream, cfg.train_dataloader.get("num_workers", 0)),
            default_hooks=hooks,
            custom_hooks=[*(cfg.get("custom_hooks") or []), hook, StudentCheckpoint(lesson.provenance), *more_hooks],
            cfg=cfg,
            train_cfg={"type": ExactTrainLoop.__name__, **exact_settings},
            **{key: cfg.get(key) for key in PASSED_ON},
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


def train_student(cfg: Config, sections: Sections) -> dict[str, Any]:
    """Train and evaluate. Returns the summary (mAP, AP50 as fractions). Raises PipelineError."""
    check_training(cfg)
    inherit = inheriting(cfg, sections)
    lesson = prepare_lesson(cfg, sections)
    begun = time.perf_counter()
    runner, hook = build_runner(cfg, sections, lesson, inherit)
    with image_errors():
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
        "images_per_second": round(hook.images * get_world_size() / max(hook.seconds, 1e-9), 2),
        "work_dir": str(cfg.work_dir),
        "feature_loss": sections.distill.feature_loss,
        "inherit_from_teacher": sections.distill.inherit_from_teacher,
        **lesson.provenance,
    }
    if is_main_process():
        write_report(Path(cfg.work_dir) / "summary.json", summary)
    return summary
