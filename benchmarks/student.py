"""A student as a benchmark needs it: loaded with its adapters, one view at a time, its graph kept."""

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
    """The teacher of a config, and its sections."""
    cfg, sections = load_config(path)
    return Teacher(find_teacher(sections.teacher), classes_of(cfg), own_device()), sections


class Student:
    """Calls give features and class logits of every level, by the losses that the distiller would hand them to.

    `loss`: the config's feature loss by its name in pipeline/losses/registry.py.
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
        self._detector.to(teacher.device).eval()  # frozen stages stay frozen: they have no gradient to err in
        self._adapters.to(teacher.device).requires_grad_(False)

    def parameters(self) -> list[Tensor]:
        """Those of the student that are trained; adapters are no part of it."""
        return [p for p in self._detector.parameters() if p.requires_grad]

    def __call__(self, view: Tensor) -> dict[str, list[Tensor]]:
        inputs = self._detector.data_preprocessor({"inputs": [view]}, False)["inputs"]
        features, logits = dense_outputs(self._detector, inputs)
        with torch.enable_grad():
            adapted = [adapter(f) for adapter, f in zip(self._adapters, features)]
        return {self.loss: adapted, "score": logits}
