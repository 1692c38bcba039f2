"""Run stage 2: train a student from the cache with mmengine's Runner."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dist import get_world_size, is_main_process
from mmengine.logging import print_log

from pipeline.cache.canonical import write_report
from pipeline.data.images import image_errors
from pipeline.data.validation import check_validation, measures_masks
from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import Config
from pipeline.recipe import announce_inputs
from pipeline.sections import Sections
from pipeline.stage2.inherit import InheritHook
from pipeline.stage2.loader import loader_errors
from pipeline.stage2.runner import build_runner
from pipeline.stage2.settings import check_training
from pipeline.stage2.teacher_data import prepare_teacher_data
from pipeline.teacher.zoo import find_teacher
from pipeline.text import one_line


def make_inherit_hooks(cfg: Config, sections: Sections) -> list[InheritHook]:
    """Return the hook that inherits weights, if the config sets it. Fetch the weights before the cache is checked."""
    if not sections.distill.inherit_from_teacher:
        return []
    if cfg.get("load_from") and not cfg.get("resume"):
        raise ConfigError("distill.inherit_from_teacher and load_from both set the head's initial weights; remove one")
    return [InheritHook(find_teacher(sections.teacher).weights())]


def train_student(cfg: Config, sections: Sections) -> dict[str, Any]:
    """Train and evaluate a student. Return the summary (mAP, AP50 as fractions). Raise PipelineError."""
    check_training(cfg)
    announce_inputs(cfg, sections, partial(print_log, logger="current"))
    if sections.teacher.source == "live":
        print_log("plan     sizes of the views of all images", "current")
    hooks = make_inherit_hooks(cfg, sections)
    data = prepare_teacher_data(cfg, sections)
    check_validation(cfg, data.stream.images.classes)
    for note in data.stream.images.notes:
        print_log(one_line(f"boxes    {note}"), "current")
    begun = time.perf_counter()
    runner, hook = build_runner(cfg, sections, data, hooks)
    with image_errors(), loader_errors():
        runner.train()
        trained = time.perf_counter() - begun
        if hook.metrics is None:  # a finished run that is resumed does not evaluate
            runner.val_loop.run()  # runner.val() would make EMAHook forget the averaged weights
    # mmdet's metric reports nothing if there is no detection.
    metrics = hook.metrics or {}
    kind = "segm" if measures_masks(cfg.model) else "bbox"
    summary = {
        "mAP": metrics.get(f"{kind}_mAP", 0.0),
        "AP50": metrics.get(f"{kind}_mAP_50", 0.0),
        **({"mAP_of": "masks"} if kind == "segm" else {}),
        "epochs": runner.epoch,
        "iterations": runner.iter,
        "images": hook.images * get_world_size(),
        "seconds": round(trained, 2),
        "images_per_second": round(hook.images * get_world_size() / max(hook.seconds, 1e-9), 2),
        "work_dir": str(cfg.work_dir),
        "feature_loss": sections.distill.feature_loss,
        "inherit_from_teacher": sections.distill.inherit_from_teacher,
        **data.provenance,
    }
    if is_main_process():
        write_report(Path(cfg.work_dir) / "summary.json", summary)
    return summary
