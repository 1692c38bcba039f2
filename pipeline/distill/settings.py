"""mmdet's flags and settings of stage 2: applied as mmdet applies them, refused where they would break the promise."""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.runner import find_latest_checkpoint

from pipeline.data import annotation_path, check_annotations
from pipeline.errors import ConfigError
from pipeline.mm import Config
from pipeline.teacher.weights import read_checkpoint

BATCH_MIXING = "data_preprocessor.batch_augments"


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


def check_checkpoint(cfg: Config) -> None:
    """Refuse a start checkpoint that is not plain data before mmengine opens it (it would unpickle anything)."""
    path = cfg.get("load_from")
    if cfg.get("resume") and path is None:
        path = find_latest_checkpoint(cfg.work_dir)
    if path:
        read_checkpoint(Path(path))
