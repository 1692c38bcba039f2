"""A student that starts with the teacher's neck and head, the field's 'inheriting' variant; off unless asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import nn

from pipeline.errors import StudentError
from pipeline.stage2.checkpoint import unwrap_distiller
from pipeline.teacher.weights import read_checkpoint


class InheritHook(Hook):
    """Copies what fits once the student is initialised; a resumed student keeps its own.

    Raises StudentError where nothing fits: a run that was asked to inherit must not silently start without.
    """

    def __init__(self, weights: Path) -> None:
        self.weights = weights

    def before_train(self, runner: Any) -> None:
        if runner.iter == 0:
            count = inherit(unwrap_distiller(runner.model).student, self.weights)
            runner.logger.info(f"inherited {count} tensors of the teacher's neck and head")


def inherit(student: nn.Module, weights: Path) -> int:
    """Copy every tensor outside the backbone whose name and shape agree. Returns how many."""
    taught, _ = read_checkpoint(weights)
    own = {key: value for key, value in student.state_dict().items() if not key.startswith("backbone.")}
    fitting = [key for key, value in own.items() if key in taught and taught[key].shape == value.shape]
    if not fitting:
        raise StudentError(
            f"distill.inherit_from_teacher: no tensor of {weights} beyond its backbone fits this student"
        )
    with torch.no_grad():
        for key in fitting:
            own[key].copy_(taught[key])
    return len(fitting)
