"""Run a detector of mmdet's zoo as teacher, and as student for one distillation step, with random weights."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from benchmarks.zoo_data import annotation_file
from benchmarks.zoo_features import code
from benchmarks.zoo_keys import loads, view_size
from pipeline.data.images import Images
from pipeline.data.views import PAD, Views, padded
from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import MODELS, Config, build
from pipeline.sections import Sections
from pipeline.stage2.compatibility import TeacherLayout
from pipeline.stage2.distiller import Distiller
from pipeline.stage2.runner import build_distiller
from pipeline.stage2.settings import require_trainable
from pipeline.stage2.teacher_data import TeacherData
from pipeline.stage2.teacher_source import CachedTeacher, LiveTeacher, TeacherSource
from pipeline.teacher.heads import class_count, class_head, output_shapes
from pipeline.teacher.model import Teacher
from pipeline.teacher.priors import priors_of
from pipeline.teacher.zoo import TeacherSpec

UNUSUAL = 1000.0  # larger than any weight that mmdet initialises


def build_detector(cfg: Config) -> nn.Module:
    """Build the detector with random weights. Raise ConfigError where it is none, or its packages are missing."""
    detector = build(MODELS, copy.deepcopy(cfg.model), "model")
    if not isinstance(detector, BaseDetector):
        raise ConfigError(f"model: expected a detector, found {type(detector).__name__}")
    initialise(detector)
    return detector


def initialise(detector: Any) -> None:
    """Initialise the weights as mmdet does. TridentNet leaves some as the memory was; those get small numbers."""
    detector.init_weights()
    for weight in detector.parameters():
        if not weight.detach().abs().max() < UNUSUAL:  # NaN as well
            nn.init.normal_(weight, std=0.01)


def batch_of(cfg: Config, classes: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Return two small views with boxes (masks and a segmentation map where the config loads them)."""
    steps: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", **loads(cfg)}]
    steps += [{"type": "Resize", "scale": view_size(cfg), "keep_ratio": False}, {"type": "PackDetInputs"}]
    prefix = {"img": str(folder / "images"), "seg": str(folder / "maps")}
    images = Images(
        {
            "type": "CocoDataset",
            "ann_file": str(annotation_file(folder, classes, 1)),
            "data_prefix": prefix,
            "metainfo": {"classes": classes},
            "pipeline": steps,
        }
    )
    views = Views(images.pipeline, 0, None)
    made = [views.replay(images.info(image), 0) for image in images.ids[:2]]
    return {"inputs": [view for view, _, _ in made], "data_samples": [sample for _, sample, _ in made]}


def settle_norms(detector: Any, views: Sequence[Tensor]) -> None:
    """Set the statistics of batch norms from the views: random weights overflow without any."""
    detector.eval()
    norms = [m for m in detector.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.eps > 0]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad(), suppress(RuntimeError):  # a size that does not suit the neck is the teacher's to refuse
        detector.extract_feat(detector.data_preprocessor({"inputs": list(views)}, False)["inputs"])
    detector.train()


def as_teacher(
    cfg: Config, detector: nn.Module, classes: tuple[str, ...], views: Sequence[Tensor], scores: bool = True
) -> Teacher:
    """Build the product's Teacher from the detector's weights, and check its output for two views."""
    settle_norms(detector, views)
    path = Path("/dev/shm" if Path("/dev/shm").is_dir() else ".") / f"zoo_teacher_{os.getpid()}.pth"
    try:
        torch.save({"state_dict": detector.state_dict(), "meta": {}}, path)
        teacher = Teacher(TeacherSpec("teacher", cfg, path, zoo=False), classes, torch.device("cpu"), scores=scores)
    finally:
        path.unlink(missing_ok=True)
    output = teacher(views)
    planned = teacher.levels(padded(views[0].shape[1:]))
    if output.levels != planned:
        raise AssertionError(f"grids {output.levels}, planned {planned}")
    if output.unsound() is not None:
        raise AssertionError("the output is not finite")
    return teacher


def as_student(cfg: Config, sections: Sections, teacher: Teacher, classes: tuple[str, ...], batch: dict) -> None:
    """Train the detector for one step on the teacher's outputs, with the config's optimizer.

    With class scores, the teacher is live. Without, its outputs are encoded and decoded by the config's codec.
    """
    scored = sections.distill.score_weight > 0
    pad_shape = padded(batch["inputs"][0].shape[1:])
    levels, channels, scores = output_shapes(teacher.detector, pad_shape, scored)
    stream: Any = SimpleNamespace(images=SimpleNamespace(classes=classes, pipeline=[]))
    layout = TeacherLayout(
        ((pad_shape, levels),), channels, scores, priors_of(class_head(teacher.detector)) if scored else None
    )
    source: TeacherSource = LiveTeacher(teacher)
    if not scored:
        codec, batch["teacher"] = code(sections, teacher, batch["inputs"])
        source = CachedTeacher(codec)
    cfg = copy.deepcopy(cfg)
    require_trainable(cfg.model)
    preprocess = cfg.model.data_preprocessor
    preprocess.pad_size_divisor = math.lcm(preprocess.get("pad_size_divisor", 1), PAD)  # as `check_training` does
    cfg.custom_hooks, cfg.load_from, cfg.work_dir = [], None, "work_dirs/zoo"
    cfg.val_evaluator = {"type": "CocoMetric"}  # the config's own is checked apart
    torch.manual_seed(1)  # other weights than the teacher's
    MessageHub.get_current_instance().runtime_info.update(iter=0, epoch=0, max_iters=10000, max_epochs=12)
    distiller = build_distiller(cfg, sections, TeacherData(stream, source, layout, {"content": None}))
    distiller.iteration = 10**6  # after the warm-up
    initialise(distiller.student)
    settle_norms(distiller.student, batch["inputs"])
    optimizer = build_optim_wrapper(distiller, cfg.optim_wrapper)
    train(distiller.train(), optimizer, batch)


def train(distiller: Distiller, optimizer: Any, batch: dict) -> None:
    """Run one step. Raise AssertionError where a loss is not finite or no gradient of distillation arrives."""
    losses = distiller(**distiller.data_preprocessor(batch, True), mode="loss")
    own = [f"loss_{distiller.section.feature_loss}_feature"]
    for name in [*own, "loss_frs_score"] if distiller.section.score_weight else own:
        value = float(losses[name].detach())
        if not math.isfinite(value) or value <= 0:
            raise AssertionError(f"{name} is {value}")
    total, _ = distiller.parse_losses(losses)
    if not math.isfinite(float(total.detach())):
        raise AssertionError(f"the loss is {float(total.detach())}")
    optimizer.update_params(total)


def check_model(cfg: Config, sections: Sections, features: Sections, folder: Path, outcome: Any) -> dict[str, Any]:
    """Return the outcomes of building the detector, of the teacher and of the student.

    features: the sections of a teacher without class scores. They are tried where those with class scores do not work.
    """
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    detector = outcome(found, "build", lambda: build_detector(cfg))
    if detector is None:
        return found
    classes = tuple(f"class {n}" for n in range(class_count(detector) or 3))
    batch = batch_of(cfg, classes, folder)
    teacher = outcome(found, "teacher", lambda: as_teacher(cfg, detector, classes, batch["inputs"]))
    if teacher is not None:
        outcome(found, "student", lambda: as_student(cfg, sections, teacher, classes, batch))
    else:
        found["student"] = found["teacher"]
    if found["student"] is not None:
        outcome(found, "features", lambda: with_features_only(cfg, features, detector, classes, batch))
    return found


def with_features_only(
    cfg: Config, sections: Sections, detector: nn.Module, classes: tuple[str, ...], batch: dict
) -> None:
    """Run the detector as teacher without class scores, and as its student."""
    teacher = as_teacher(cfg, detector, classes, batch["inputs"], scores=False)
    as_student(cfg, sections, teacher, classes, batch)
