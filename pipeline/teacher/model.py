"""A frozen teacher: backbone, neck and class head, without NMS and box decoding."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.data.views import PAD, padded
from pipeline.errors import ConfigError, TeacherError
from pipeline.losses.frs import frs_map
from pipeline.losses.ld import bins_of, box_distributions
from pipeline.mmdet_compat.registry import MODELS, build
from pipeline.precision import precision
from pipeline.records import LevelShapes, TeacherOutput
from pipeline.sections import Sections
from pipeline.teacher.backbones import FeatureExtractor
from pipeline.teacher.class_names import require_classes
from pipeline.teacher.class_scores import class_logits
from pipeline.teacher.fit import load_backbone, load_strict
from pipeline.teacher.heads import (
    Shapes,
    class_count,
    class_head,
    copy_to_meta,
    dense_features,
    require_logits,
    shapes_of,
)
from pipeline.teacher.layout import unmask, use_fast_layout
from pipeline.teacher.weights import read_checkpoint
from pipeline.teacher.zoo import TeacherSpec


def own_device() -> torch.device:
    """Return this process's GPU under a launcher, otherwise the first GPU, or the CPU if there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


class Teacher:
    """Computes the TeacherOutput of views that have one padded shape.

    classes: those of the data set, in label order. scores: whether class scores are needed. `scored`: whether there are
    any; without them, the richness map is 1 everywhere. boxes: whether box distributions are returned, of `bins` bins a
    side. Raises TeacherError where weights, config and classes do not fit, and ConfigError where class scores are
    needed and the detector has none.
    """

    def __init__(
        self,
        spec: TeacherSpec,
        classes: tuple[str, ...],
        device: torch.device,
        tf32: bool = False,
        scores: bool = True,
        boxes: bool = False,
    ) -> None:
        self.detector = self._load(spec, classes)
        self.detector.to(device).eval().requires_grad_(False)
        self.detector.dataset_meta = {"classes": classes}
        unmask(self.detector)
        use_fast_layout(self.detector, device)  # the live teacher does the same
        self.device, self._tf32 = device, tf32
        self.scored = self._has_scores(needed=scores or boxes)
        self.bins = bins_of(class_head(self.detector)) if boxes else 0
        self._meta_copy = copy_to_meta(self.detector, self.scored)
        self._shapes: dict[tuple[int, int], Shapes] = {}

    @staticmethod
    def _load(spec: TeacherSpec, classes: tuple[str, ...]) -> Any:
        path: Path = spec.weights()
        state, meta = read_checkpoint(path)
        model = copy.deepcopy(spec.cfg.model)
        model.backbone.pop("init_cfg", None)  # all weights come from the checkpoint
        # Every view is padded to multiples of PAD, whatever padding the teacher was trained with.
        model.data_preprocessor.update(pad_size_divisor=PAD, batch_augments=None)
        detector = build(MODELS, model, "teacher")
        if isinstance(detector, FeatureExtractor):
            load_backbone(detector.loaded, state, path)
            return detector
        load_strict(detector, state, path)
        require_classes(meta, classes, path, spec.class_names)
        count = class_count(detector)
        if count not in (None, len(classes)):
            raise TeacherError(
                f"teacher predicts {count} classes, the dataset has {len(classes)}; set metainfo.classes"
            )
        return detector

    def _has_scores(self, needed: bool) -> bool:
        """Return whether the detector has usable class scores. Raise ConfigError where they are needed and missing."""
        try:
            require_logits(self.detector)
        except ConfigError as error:
            if needed:
                raise ConfigError(
                    f"{error}. Without class scores, set cache.codec=dict(scores=False, profile='universal') and "
                    "distill.score_weight=0"
                ) from error
            return False
        return True

    def levels(self, pad_shape: tuple[int, int]) -> LevelShapes:
        """Return the FPN grids of a padded view (H, W)."""
        return self.shapes(pad_shape)[0]

    def shapes(self, pad_shape: tuple[int, int]) -> Shapes:
        """Return (FPN grids, C of each level, K) of a padded view; K is 0 without class scores."""
        if pad_shape not in self._shapes:
            self._shapes[pad_shape] = shapes_of(self._meta_copy, pad_shape, self.scored)
        return self._shapes[pad_shape]

    def __call__(self, views: Sequence[Tensor]) -> TeacherOutput:
        """Compute the output of views (3, h, w) uint8 that have the same shape after padding to multiples of 32."""
        shapes = {padded(view.shape[1:]) for view in views}
        if len(shapes) != 1:
            raise ValueError(f"teacher batch: expected one padded shape, found {sorted(shapes)}")
        self.levels(*shapes)  # raises ConfigError for a shape that the detector cannot compute
        return self.padded_together(views)

    @torch.no_grad()
    def padded_together(self, views: Sequence[Tensor]) -> TeacherOutput:
        """Compute views of any shapes, padded to the largest. A cache never contains this (docs/design.md, "Views")."""
        with precision(self._tf32):
            inputs = self.detector.data_preprocessor({"inputs": list(views)}, False)["inputs"]
            if not self.scored:
                features = [f.float() for f in dense_features(self.detector, inputs)]
                return TeacherOutput(features, [], [f.new_ones(f[:, 0].shape) for f in features])
            features, head = dense_features(self.detector, inputs), class_head(self.detector)
            output = head(tuple(features))
            scores = [level.float().sigmoid_() for level in class_logits(head, output)]  # in place: they may be large
            boxes = [level.float() for level in box_distributions(head, output)] if self.bins else []
        richness = [frs_map(s) for s in scores]
        return TeacherOutput([f.float() for f in features], scores, richness, boxes=boxes)

    def by_shape(self, views: Sequence[Tensor]) -> TeacherOutput:
        """Compute views of any shapes, each with its own padding, and pad the outputs to a common grid with frs = 0.

        A live teacher uses this method, so its output equals the cached output.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for index, view in enumerate(views):
            groups.setdefault(padded(view.shape[1:]), []).append(index)
        canvas = self.levels((max(h for h, _ in groups), max(w for _, w in groups)))
        parts = {shape: self([views[i] for i in indices]) for shape, indices in groups.items()}
        if len(parts) == 1:
            return next(iter(parts.values()))
        first = next(iter(parts.values()))
        features, scores, frs, boxes = (
            [t.new_zeros((len(views), *t.shape[1:-2], *size)) for t, size in zip(tensors, canvas)]
            for tensors in (first.features, first.scores, first.frs, first.boxes)
        )
        grids = tuple(self.levels(padded(view.shape[1:])) for view in views)
        output = TeacherOutput(features, scores, frs, grids, boxes)
        for shape, indices in groups.items():
            part = parts[shape]
            for whole, own in zip((features, scores, frs, boxes), (part.features, part.scores, part.frs, part.boxes)):
                for target, source, (h, w) in zip(whole, own, self.levels(shape)):
                    target[indices, ..., :h, :w] = source
        return output


def load_teacher(sections: Sections, spec: TeacherSpec, classes: tuple[str, ...]) -> Teacher:
    """Build the teacher of a config on this process's device, with class scores if the config needs them."""
    live = sections.teacher.source == "live"
    boxes = sections.distill.box_weight > 0 if live else sections.cache.codec.boxes
    needed = sections.distill.score_weight > 0 if live else sections.cache.codec.scores
    return Teacher(spec, classes, own_device(), sections.teacher.tf32, needed, boxes)
