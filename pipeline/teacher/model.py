"""A frozen teacher: backbone, neck and class head. No NMS, no box decoding."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.views import PAD, padded
from pipeline.errors import TeacherError
from pipeline.losses.frs import frs_map
from pipeline.mmdet_compat.registry import MODELS, build
from pipeline.precision import precision
from pipeline.records import LevelShapes, TeacherOutput
from pipeline.teacher.heads import class_count, dense_outputs, ghost, output_shapes
from pipeline.teacher.weights import classes_of, load_strict, read_checkpoint
from pipeline.teacher.zoo import TeacherSpec


def own_device() -> torch.device:
    """This process's GPU under a launcher, the first without, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


class Teacher:
    """Callable: views of one padded shape in, TeacherOutput out.

    classes: the dataset's, in label order. Raises TeacherError where weights, config and classes do not fit.
    """

    def __init__(self, spec: TeacherSpec, classes: tuple[str, ...], device: torch.device, tf32: bool = False) -> None:
        path: Path = spec.weights()
        state, meta = read_checkpoint(path)
        model = copy.deepcopy(spec.cfg.model)
        model.backbone.pop("init_cfg", None)  # weights come from the checkpoint alone
        # Views are padded on their own to this, whatever the teacher was trained with.
        model.data_preprocessor.update(pad_size_divisor=PAD, batch_augments=None)
        self.detector = build(MODELS, model, "teacher")
        load_strict(self.detector, state, path)
        trained_on, count = classes_of(meta), class_count(self.detector)
        if trained_on is not None and trained_on != classes:
            raise TeacherError(
                f"{path}: trained on {len(trained_on)} classes {trained_on[:3]}..., the dataset has {len(classes)} "
                f"{classes[:3]}...: the label order must be the same"
            )
        if count not in (None, len(classes)):
            raise TeacherError(f"teacher predicts {count} classes, the dataset has {len(classes)}")
        self.detector.to(device).eval().requires_grad_(False)
        self.detector.dataset_meta = {"classes": classes}
        if device.type == "cpu":  # a sixth faster there; the live teacher does the same
            self.detector.to(memory_format=torch.channels_last)
        self.device, self._tf32 = device, tf32
        self._ghost = ghost(self.detector)
        self._levels: dict[tuple[int, int], LevelShapes] = {}

    def levels(self, pad_shape: tuple[int, int]) -> LevelShapes:
        """FPN grids for a padded view (H, W)."""
        if pad_shape not in self._levels:
            self._levels[pad_shape], *_ = output_shapes(self._ghost, pad_shape)
        return self._levels[pad_shape]

    def __call__(self, views: Sequence[Tensor]) -> TeacherOutput:
        """views: (3, h, w) uint8 each, equal once padded to multiples of 32."""
        shapes = {padded(view.shape[1:]) for view in views}
        if len(shapes) != 1:
            raise ValueError(f"a teacher batch holds one padded shape, found {sorted(shapes)}")
        return self.padded_together(views)

    @torch.no_grad()
    def padded_together(self, views: Sequence[Tensor]) -> TeacherOutput:
        """Views of any shapes, padded to the largest of them: not what a cache holds, see docs/design.md."""
        with precision(self._tf32):
            inputs = self.detector.data_preprocessor({"inputs": list(views)}, False)["inputs"]
            features, logits = dense_outputs(self.detector, inputs)
            scores = [level.float().sigmoid() for level in logits]
        return TeacherOutput([f.float() for f in features], scores, [frs_map(s) for s in scores])

    def by_shape(self, views: Sequence[Tensor]) -> TeacherOutput:
        """Views of any shapes: each runs on its own padded grid, results lie on the common canvas with frs = 0 beyond.

        This is what a live teacher must do to be the same teacher as a cached one.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for index, view in enumerate(views):
            groups.setdefault(padded(view.shape[1:]), []).append(index)
        canvas = self.levels((max(h for h, _ in groups), max(w for _, w in groups)))
        parts = {shape: self([views[i] for i in indices]) for shape, indices in groups.items()}
        if len(parts) == 1:
            return next(iter(parts.values()))
        first = next(iter(parts.values()))
        blank = lambda like, size: like.new_zeros((len(views), *like.shape[1:-2], *size))  # noqa: E731
        features, scores, frs = (
            [blank(t, size) for t, size in zip(tensors, canvas)]
            for tensors in (first.features, first.scores, first.frs)
        )
        whole = TeacherOutput(features, scores, frs, tuple(self.levels(padded(view.shape[1:])) for view in views))
        for shape, indices in groups.items():
            for level, (h, w) in enumerate(self.levels(shape)):
                whole.features[level][indices, :, :h, :w] = parts[shape].features[level]
                whole.scores[level][indices, :, :h, :w] = parts[shape].scores[level]
                whole.frs[level][indices, :h, :w] = parts[shape].frs[level]
        return whole
