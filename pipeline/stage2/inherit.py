"""Initialise a student's neck and head from the teacher ('inheriting'). Off by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import nn

from pipeline.errors import StudentError
from pipeline.stage2.checkpoint import unwrap_distiller
from pipeline.teacher.fit import COUNTER, matching
from pipeline.teacher.weights import read_checkpoint


class InheritHook(Hook):
    """Copies matching weights after the student is initialised. A resumed student keeps its own weights.

    Raises StudentError where no weight matches, because the run would otherwise silently start without them.
    """

    def __init__(self, weights: Path) -> None:
        self.weights = weights

    def before_train(self, runner: Any) -> None:
        if runner.iter == 0:
            count = inherit(unwrap_distiller(runner.model).student, self.weights)
            runner.logger.info(f"inherited {count} tensors of the teacher's neck and head")


def inherit(student: nn.Module, weights: Path) -> int:
    """Copy every tensor outside the backbone that has the same name and shape. Return their number."""
    source, _ = read_checkpoint(weights)
    fitting, _ = matching(student, source, weights)
    found = {key: value for key, value in fitting.items() if not key.startswith("backbone.")}
    if all(key.endswith(COUNTER) for key in found):
        raise StudentError(
            f"distill.inherit_from_teacher: no tensor of {weights} outside the backbone matches the student; "
            "set it to False"
        )
    own = student.state_dict()
    with torch.no_grad():
        for key, value in found.items():
            own[key].copy_(value)
    return len(found)
