"""Apply mmdet's flags to a config, and reject settings that stage 2 cannot keep."""

from __future__ import annotations

import locale
import logging
import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from pipeline.data.view_record import PAD
from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import Config, type_name
from pipeline.stage2.loader import read_batch_size, read_loader

LENGTHS = {"EpochBasedTrainLoop": "max_epochs", "IterBasedTrainLoop": "max_iters"}  # and what sets their length
BATCH_MIXING = "data_preprocessor.batch_augments"
PADDING = {"BatchFixedSizePad"}  # batch_augments that only pad at the bottom and right
WITH_SKLEARN = {"PAAHead", "LADHead"}  # their losses fit a Gaussian mixture


def apply_flags(
    cfg: Config, path: str, work_dir: str | None, resume: str | None, amp: bool, auto_scale_lr: bool, launcher: str
) -> None:
    """Write the command-line flags into the config, as mmdet's tools/train.py does. Raise ConfigError."""
    cfg.work_dir = work_dir or cfg.get("work_dir") or f"work_dirs/{Path(path).stem}"
    _check_work_dir(str(cfg.work_dir))
    cfg.launcher = launcher
    if not isinstance(cfg.get("auto_scale_lr") or {}, dict):
        raise ConfigError(f"auto_scale_lr: expected dict(enable=..., base_batch_size=...), found {cfg.auto_scale_lr!r}")
    scaled = auto_scale_lr or (cfg.get("auto_scale_lr") or {}).get("enable")
    wrapper = cfg.get("optim_wrapper")
    if (amp or scaled) and not (isinstance(wrapper, dict) and isinstance(wrapper.get("optimizer"), dict)):
        raise ConfigError("--amp and --auto-scale-lr need optim_wrapper.optimizer in the config")
    if amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.loss_scale = "dynamic"
    if resume:
        cfg.resume, cfg.load_from = True, None if resume == "auto" else resume
    scale_learning_rate(cfg, bool(scaled), launcher)


def _check_work_dir(work_dir: str) -> None:
    """Raise ConfigError where mmengine could not write the name of a checkpoint into its file last_checkpoint."""
    encoding = locale.getpreferredencoding(False)
    try:
        work_dir.encode(encoding)
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"work_dir: {work_dir} cannot be written in the locale's encoding {encoding}; use another folder, or set "
            "PYTHONUTF8=1"
        ) from error


def scale_learning_rate(cfg: Config, requested: bool, launcher: str) -> None:
    """Scale the learning rate to the batch size, if `requested`.

    Otherwise print a warning where the batch size is not the one that the learning rate was chosen for. Samples of
    steps that optim_wrapper accumulates belong to one batch.
    """
    base = (cfg.get("auto_scale_lr") or {}).get("base_batch_size")
    if base is None and requested:
        raise ConfigError("--auto-scale-lr: auto_scale_lr.base_batch_size is missing in the config; set it")
    if base is not None and not (_is_number(base) and base > 0):
        raise ConfigError(f"auto_scale_lr.base_batch_size: expected a number above 0, found {base!r}")
    real = count_ranks(launcher) * read_batch_size(cfg.train_dataloader) * _count_accumulated(cfg)
    if requested:
        rate = cfg.optim_wrapper.optimizer.get("lr")
        if not _is_number(rate):
            raise ConfigError(f"optim_wrapper.optimizer.lr: expected a number to scale, found {rate!r}")
        cfg.optim_wrapper.optimizer.lr = rate * real / base
    elif base and real != base:
        print_log(
            f"warning  {real} images a step, but the learning rate is for {base} (auto_scale_lr.base_batch_size); "
            "add --auto-scale-lr to scale it",
            "current",
            logging.WARNING,
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count_accumulated(cfg: Config) -> int:
    """Return the number of steps whose gradients optim_wrapper adds up before it updates the weights."""
    wrapper = cfg.get("optim_wrapper")
    steps = wrapper.get("accumulative_counts", 1) if isinstance(wrapper, dict) else 1
    if type(steps) is not int or steps < 1:
        raise ConfigError(f"optim_wrapper.accumulative_counts: expected an integer of at least 1, found {steps!r}")
    return steps


def count_ranks(launcher: str) -> int:
    """Return the number of processes that a launcher started."""
    sizes = [os.environ.get(name) for name in ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    return 1 if launcher == "none" else int(next((size for size in sizes if size), "1"))


def check_training(cfg: Config) -> None:
    """Raise ConfigError for settings that would train on other inputs than the cached views."""
    for key in ("val_dataloader", "val_evaluator", "optim_wrapper", "train_cfg"):
        if not isinstance(cfg.get(key), dict | list):
            raise ConfigError(f"{key}: missing in the config; stage 2 needs it to train and evaluate a student")
    loop_of(cfg)
    require_trainable(cfg.model)
    read_loader(cfg.train_dataloader)
    _check_padding(cfg)


def require_trainable(model: Config) -> None:
    """Raise ConfigError for a detector whose loss needs a package that is not installed, or proposals from a file."""
    if model.get("roi_head") and not model.get("rpn_head"):
        raise ConfigError(
            f"model: {type_name(model.get('type'))} trains on proposals from a file, which cached views do not have; "
            "use a detector with an rpn_head, such as FasterRCNN"
        )
    head = model.get("bbox_head")
    name = type_name(head.get("type")) if isinstance(head, dict) else None
    if name in WITH_SKLEARN and find_spec("sklearn") is None:
        raise ConfigError(f"model.bbox_head: {name} needs scikit-learn to train; install it: pip install scikit-learn")
    if _uses_torchvision(model) and find_spec("torchvision") is None:
        raise ConfigError(
            "model: a RoIAlign with use_torchvision=True needs torchvision; install it, or set use_torchvision=False"
        )


def _uses_torchvision(value: Any) -> bool:
    """Return whether a part of a detector's config takes an op from torchvision instead of mmcv."""
    if isinstance(value, dict):
        return bool(value.get("use_torchvision")) or any(map(_uses_torchvision, value.values()))
    return isinstance(value, list | tuple) and any(map(_uses_torchvision, value))


def loop_of(cfg: Config) -> str:
    """Return the name of mmengine's loop that `train_cfg` sets. Raise ConfigError for one that stage 2 has not."""
    by_epoch = cfg.train_cfg.get("by_epoch")
    usual = "IterBasedTrainLoop" if by_epoch is False else "EpochBasedTrainLoop"
    name = type_name(cfg.train_cfg.get("type") or usual)
    length = LENGTHS.get(name)
    if length is None or (by_epoch is not None and by_epoch != (name == "EpochBasedTrainLoop")):
        raise ConfigError(f"train_cfg: expected one of {sorted(LENGTHS)}, found {dict(cfg.train_cfg)}")
    for key, default in ((length, None), ("val_interval", 1)):
        value = cfg.train_cfg.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value != int(value):
            raise ConfigError(f"train_cfg.{key}: expected a whole number of at least 1, found {value!r}")
    for begin, interval in cfg.train_cfg.get("dynamic_intervals") or ():
        if interval < 1:
            raise ConfigError(
                f"train_cfg.dynamic_intervals: expected intervals of at least 1, found {(begin, interval)}"
            )
    return name


def _check_padding(cfg: Config) -> None:
    """Make the student's preprocessor pad to multiples of 32, as the teacher's does.

    Raise ConfigError for a part of it that changes images.
    """
    preprocessor = cfg.model.get("data_preprocessor")
    if not isinstance(preprocessor, dict):
        raise ConfigError("model.data_preprocessor: missing; add dict(type='DetDataPreprocessor', mean=..., std=...)")
    for augment in preprocessor.get("batch_augments") or []:
        name = type_name(augment.get("type"))
        if name not in PADDING:
            raise ConfigError(f"model.{BATCH_MIXING}: {name} changes images after their views are checked; remove it")
    divisor = preprocessor.get("pad_size_divisor", 1)
    if isinstance(divisor, bool) or not isinstance(divisor, int) or divisor < 1:
        raise ConfigError(
            f"model.data_preprocessor.pad_size_divisor: expected a whole number of at least 1, found {divisor!r}"
        )
    wanted = math.lcm(divisor, PAD)
    if wanted != divisor:
        preprocessor["pad_size_divisor"] = wanted
        print_log(
            f"padding  model.data_preprocessor.pad_size_divisor {divisor} -> {wanted}: the teacher's views are padded "
            f"to multiples of {PAD}",
            "current",
        )
