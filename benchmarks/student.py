"""A trained student with its adapters, for gradients of single views."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from demo.train_teacher import classes_of
from pipeline.config import Sections, load_config
from pipeline.losses.registry import feature_losses
from pipeline.mmdet_compat.registry import MODELS, Config, build
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

    `loss`: name of the config's feature loss (`Loss.name`).
    """

    def __init__(self, cfg: Config, checkpoint: Path, teacher: Teacher) -> None:
        cfg.model.backbone.pop("init_cfg", None)
        self._detector = build(MODELS, cfg.model, "model")
        found = load_plain(checkpoint)
        self._detector.load_state_dict(found["state_dict"])
        levels, own, _ = output_shapes(self._detector, (128, 128))
        _, channels, _ = output_shapes(teacher.detector, (128, 128))
        loss = feature_losses()[cfg.distill.get("feature_loss", "frs")]
        self.loss = loss.name
        self._adapters = new_adapters(loss, len(levels), own, channels)
        self._adapters.load_state_dict(found["frs"]["adapters"])
        self._detector.to(teacher.device).eval()  # frozen stages stay frozen, so they have no gradient
        self._adapters.to(teacher.device).requires_grad_(False)

    def parameters(self) -> list[Tensor]:
        """Return the student's trained parameters, without the adapters."""
        return [p for p in self._detector.parameters() if p.requires_grad]

    def __call__(self, view: Tensor) -> dict[str, list[Tensor]]:
        inputs = self._detector.data_preprocessor({"inputs": [view]}, False)["inputs"]
        features, logits = dense_outputs(self._detector, inputs)
        with torch.enable_grad():
            adapted = [adapter(f) for adapter, f in zip(self._adapters, features)]
        return {self.loss: adapted, "score": logits}
