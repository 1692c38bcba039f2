"""A trained student with its adapters, for gradients of single views."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from demo.train_teacher import classes_of
from pipeline.calibration.adapters import fit_adapters
from pipeline.calibration.gradient import unexplained_variance
from pipeline.calibration.positions import sample_output
from pipeline.config import load_config
from pipeline.losses.registry import feature_losses
from pipeline.mmdet_compat.registry import MODELS, Config, build
from pipeline.sections import Sections
from pipeline.stage2.distiller import new_adapters
from pipeline.teacher.heads import dense_outputs, output_shapes
from pipeline.teacher.model import Teacher, own_device
from pipeline.teacher.weights import load_plain
from pipeline.teacher.zoo import find_teacher


def load_teacher(path: str) -> tuple[Teacher, Sections]:
    """Load the teacher of a config. Return it and the config's sections."""
    cfg, sections = load_config(path)
    return Teacher(find_teacher(sections.teacher), classes_of(cfg), own_device()), sections


class Student:
    """Computes the adapted features and class logits of a view, by the name of the loss that uses them.

    adapters: their file, if the checkpoint has none. fitting: returns views to fit adapters on, if neither has any.
    `loss`: name of the config's feature loss (`Loss.name`).
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: Path,
        teacher: Teacher,
        adapters: Path | None = None,
        fitting: Callable[[], list[Tensor]] = list,
    ) -> None:
        cfg.model.backbone.pop("init_cfg", None)
        self._detector = build(MODELS, cfg.model, "model")
        found = load_plain(checkpoint)
        self._detector.load_state_dict(_as_float(found["state_dict"]))
        _, own, _ = output_shapes(self._detector, (128, 128))
        _, channels, _ = output_shapes(teacher.detector, (128, 128))
        loss = feature_losses()[cfg.distill.get("feature_loss", "frs")]
        self.loss = loss.name
        self._adapters = new_adapters(loss, own, channels)
        self._detector.to(teacher.device).eval()  # frozen stages stay frozen, so they have no gradient
        stored = load_plain(adapters) if adapters else found.get("frs", found).get("adapters")
        if stored is not None:
            self._adapters.load_state_dict(_as_float(stored))
        else:
            self._fit_adapters(teacher, fitting())
        self._adapters.to(teacher.device).requires_grad_(False)

    @torch.no_grad()
    def _fit_adapters(self, teacher: Teacher, views: list[Tensor]) -> None:
        fitted = fit_adapters((sample_output(teacher([view]), False), self._outputs(view)[0]) for view in views)
        for module, weight, bias in zip(self._adapters, fitted.weights, fitted.biases):
            assert isinstance(module, nn.Conv2d)
            module.weight.copy_(weight)
            module.bias.copy_(bias)  # type: ignore[union-attr]

    def parameters(self) -> list[Tensor]:
        """Return the student's trained parameters, without the adapters."""
        return [p for p in self._detector.parameters() if p.requires_grad]

    def _outputs(self, view: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return dense_outputs(self._detector, self._detector.data_preprocessor({"inputs": [view]}, False)["inputs"])

    def __call__(self, view: Tensor) -> dict[str, list[Tensor]]:
        features, logits = self._outputs(view)
        with torch.enable_grad():
            adapted = [adapter(f) for adapter, f in zip(self._adapters, features)]
        return {self.loss: adapted, "score": logits}


def _as_float(state: dict[str, Any]) -> dict[str, Any]:
    """Return weights as float32; small files have float16."""
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def missed_share(what: str, teacher: Teacher, student: Student, views: list[Tensor]) -> float | None:
    """Return the share of the teacher's variance that a student does not explain; None for losses other than frs."""
    if what not in ("feature", "score"):
        return None
    activation = torch.sigmoid if what == "score" else torch.Tensor.clone
    with torch.no_grad():
        return unexplained_variance(
            what, ((teacher([view]), [activation(x) for x in student(view)[what]]) for view in views)
        )
