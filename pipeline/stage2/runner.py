"""Build mmengine's Runner around a Distiller and the cache's stream."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed
from torch import distributed, nn

from pipeline.data.stream import Stream, stream_loader
from pipeline.errors import ConfigError, StudentError
from pipeline.mmdet_compat.registry import MODELS, Config, build, config_errors, type_name
from pipeline.sections import DistillSection, Sections
from pipeline.stage2.checkpoint import LoadStudent, SaveStudent, StreamHook, WholeCheckpointHook
from pipeline.stage2.distiller import Distiller
from pipeline.stage2.finite import FiniteHook
from pipeline.stage2.hooks import check_hooks
from pipeline.stage2.loader import read_batch_size, read_loader
from pipeline.stage2.loop import RESUMABLE
from pipeline.stage2.rehearsal import rehearse_schedules, rehearse_validation
from pipeline.stage2.resume import check_starting_weights, find_checkpoint, guard_loading
from pipeline.stage2.settings import loop_of
from pipeline.stage2.teacher_data import TeacherData
from pipeline.teacher.heads import class_count
from pipeline.teacher.layout import use_fast_layout
from pipeline.teacher.model import own_device

# Keys that are passed to mmengine's Runner unchanged.
UNCHANGED_KEYS = (
    "val_dataloader",
    "val_cfg",
    "val_evaluator",
    "optim_wrapper",
    "param_scheduler",
    "load_from",
    "log_processor",
    "visualizer",
)


def join_processes(cfg: Config) -> None:
    """Set up torch.distributed on CPUs. mmengine's launcher and wrapper need CUDA devices."""
    if cfg.get("launcher", "none") == "pytorch" and not torch.cuda.is_available():
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
        wrapper = {"type": "MMDistributedDataParallel", "device_ids": None, "broadcast_buffers": False}
        cfg.setdefault("model_wrapper_cfg", wrapper)


def build_distiller(cfg: Config, sections: Sections, data: TeacherData) -> Distiller:
    """Check the student's initial weights, and build the student and the Distiller around it."""
    student = build(MODELS, cfg.model, "model")
    count, wanted = class_count(student), len(data.stream.images.classes)
    if count not in (None, wanted):
        raise StudentError(
            f"student predicts {count} classes, the data set and the cache have {wanted}; set num_classes"
        )
    find_checkpoint(cfg)
    check_hooks(cfg, student, data.stream.images.pipeline)
    guard_loading(check_starting_weights(cfg, student, data.provenance))
    use_fast_layout(student, own_device())
    return wrap_student(student, data, sections.distill)


def wrap_student(student: nn.Module, data: TeacherData, distill: DistillSection) -> Distiller:
    """Build the Distiller that trains `student` on the teacher data."""
    return Distiller(student, data.teacher, distill, data.layout)


def default_hooks(cfg: Config) -> dict[str, Any]:
    """Return the config's default hooks, with a checkpoint hook that always keeps one complete file."""
    hooks = copy.deepcopy(dict(cfg.get("default_hooks") or {}))
    saving = hooks.get("checkpoint")
    if isinstance(saving, dict) and type_name(saving.get("type")) == "CheckpointHook":
        hooks["checkpoint"] = {**saving, "type": WholeCheckpointHook.__name__}
    hooks["sampler_seed"] = None  # no sampler: the stream's order depends only on seed and epoch
    return hooks


def build_runner(
    cfg: Config, sections: Sections, data: TeacherData, more_hooks: Sequence[Hook] = ()
) -> tuple[Runner, StreamHook]:
    """Build mmengine's Runner around a Distiller and a Stream."""
    batch_size = read_batch_size(cfg.train_dataloader)
    randomness = cfg.get("randomness") or {}
    if not isinstance(randomness, dict):
        raise ConfigError(f"randomness: expected dict(seed=...), found {randomness!r:.60}")
    seed = randomness.get("seed")
    if seed is not None:
        with config_errors("randomness.seed"):
            set_random_seed(seed)  # mmengine's Runner seeds after the adapters are made
    model = build_distiller(cfg, sections, data)
    join_processes(cfg)
    stream, hook = Stream(data.stream, batch_size, seed=seed or 0), StreamHook()
    loop_settings = {key: value for key, value in cfg.train_cfg.items() if key not in ("type", "by_epoch")}
    with config_errors("stage 2's runner"):
        runner = Runner(
            model=model,
            work_dir=cfg.work_dir,
            train_dataloader=stream_loader(stream, read_loader(cfg.train_dataloader)),
            default_hooks=default_hooks(cfg),
            custom_hooks=[
                *(cfg.get("custom_hooks") or []),
                hook,
                FiniteHook(),
                LoadStudent(),
                SaveStudent(data.provenance),
                *more_hooks,
            ],
            cfg=cfg,
            train_cfg={"type": RESUMABLE[loop_of(cfg)].__name__, **loop_settings},
            **{key: cfg.get(key) for key in UNCHANGED_KEYS},
            resume=cfg.get("resume", False),
            launcher=cfg.get("launcher", "none"),
            env_cfg=cfg.get("env_cfg") or {"dist_cfg": {"backend": "nccl"}},
            log_level=cfg.get("log_level", "INFO"),
            default_scope="mmdet",
            randomness=randomness or {"seed": None},
        )
        stream.set_rank(get_rank(), get_world_size())
        build_optimizers(runner)
    rehearse_validation(runner)
    return runner, hook


def build_optimizers(runner: Runner) -> None:
    """Build optimizer and schedules before Runner.train(), so that config errors are reported as such."""
    assert runner.train_loop is not None and runner.val_loop is not None
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    if runner.param_schedulers is not None:
        built = runner.build_param_scheduler(runner.param_schedulers)
        runner.param_schedulers = built
        for schedulers in built.values() if isinstance(built, dict) else [built]:
            rehearse_schedules(schedulers)
