"""A distiller with a batch of its stream, and one step of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pipeline.config import load_config
from pipeline.data.stream import Stream
from pipeline.losses.registry import feature_losses
from pipeline.mmdet_compat.registry import MODELS
from pipeline.stage2.distiller import Distiller
from pipeline.stage2.runner import wrap_student
from pipeline.stage2.teacher_data import prepare_teacher_data


def distiller_and_batch(config: Path, source: str, batch: int = 0, loss: str = "frs") -> tuple[Distiller, dict]:
    """Build a config's student with its teacher data, and take one batch of the stream."""
    cfg, sections = load_config(str(config), {"teacher.source": source, "distill.feature_loss": loss})
    teacher_data = prepare_teacher_data(cfg, sections)
    torch.manual_seed(3)
    student = MODELS.build(cfg.model)
    student.init_weights()
    model = wrap_student(student, teacher_data, sections.distill)
    stream = Stream(teacher_data.stream, batch_size=4, seed=0)
    return model.train(), list(stream)[batch]


def step(model: Distiller, batch: dict) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Losses and the gradients of the distillation part on the student's parameters."""
    torch.manual_seed(4)
    np.random.seed(4)
    losses = model(**model.data_preprocessor(batch, True), mode="loss")
    distilled = tuple(f"loss_{name}_" for name in feature_losses())
    own = {name: value for name, value in losses.items() if name.startswith(distilled)}
    names, parameters = zip(*((n, p) for n, p in model.student.named_parameters() if p.requires_grad))
    gradients = torch.autograd.grad(sum(own.values()), parameters, allow_unused=True)
    return own, {name: g for name, g in zip(names, gradients) if g is not None}
