"""The outputs of a detector that distillation uses: its features, and class logits that are dense over their levels.

Features are the neck's output, or the backbone's where a detector has no neck.

One-stage detectors: the logits of bbox_head. Two-stage detectors: the RPN's objectness, never the RoI head's scores.
Feature losses need no class logits, so they work for detectors without such a head, and for backbones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, brief
from pipeline.records import LevelShapes
from pipeline.teacher.class_scores import class_logits, require_class_scores, require_no_sigmoid
from pipeline.teacher.raw_scores import require_raw_scores

TRIAL_SIDES = (128, 512)  # of the images that a detector is tried on; SSD's last levels need more than 128 pixels
CORNERS = "CornerHead"  # its scores are those of a box's corners, which are no map of where objects are
T = TypeVar("T")


def feature_source(detector: nn.Module) -> nn.Module:
    """Return the part of a detector whose output is its features."""
    neck = getattr(detector, "neck", None)
    return detector.backbone if neck is None else neck  # type: ignore[return-value]


def class_head(detector: nn.Module) -> nn.Module:
    """Return the dense head whose output contains class scores, (B, K, H_l, W_l) for each level."""
    head = getattr(detector, "rpn_head", None) or getattr(detector, "bbox_head", None)
    if head is None or any(kind.__name__ == CORNERS for kind in type(head).__mro__):
        found = "none" if head is None else f"{type(head).__name__}, which scores the corners of boxes"
        raise ConfigError(f"{type(detector).__name__}: expected a dense bbox_head or rpn_head, found {found}")
    if not getattr(head, "use_sigmoid_cls", True):
        raise ConfigError(f"{type(head).__name__}: expected a head with sigmoid class scores, found one with softmax")
    return head


def dense_features(detector: Any, inputs: Tensor) -> list[Tensor]:
    """Compute the features [(B, C_l, H_l, W_l)] of preprocessed images (B, 3, H, W)."""
    features = list(detector.extract_feat(inputs))
    if not features or not all(isinstance(x, Tensor) and x.dim() == 4 for x in features):
        raise ConfigError(f"{type(detector).__name__}: expected features (B, C, H, W) for each level")
    return features


def dense_outputs(detector: Any, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Compute (features, class logits) of every level for preprocessed images (B, 3, H, W)."""
    features, head = dense_features(detector, inputs), class_head(detector)
    return features, class_logits(head, head(tuple(features)))


def require_logits(detector: Any) -> None:
    """Run a detector on a small image of noise. Raise ConfigError where it has no usable class scores."""
    head, device = class_head(detector), next(detector.parameters()).device

    def run(side: int) -> tuple[list[Tensor], list[Tensor]]:
        noise = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(0)).to(device)
        return dense_outputs(detector.eval(), noise * 4 - 2)

    training = detector.training
    try:
        with torch.no_grad():
            features, logits = _first_that_runs(run)
            require_class_scores(head, logits)
            require_no_sigmoid(head, logits)
            require_raw_scores(head, features)
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        raise ConfigError(f"{type(head).__name__}: gives no class scores: {brief(error)}") from error
    finally:
        detector.train(training)


def class_count(detector: nn.Module) -> int | None:
    """Return the number of classes that a detector predicts; None if its head has no num_classes."""
    head = getattr(getattr(detector, "roi_head", None) or detector, "bbox_head", None)
    if isinstance(head, nn.ModuleList):  # in a cascade, every stage predicts the same classes
        head = head[0]
    return getattr(head, "num_classes", None)


def copy_to_meta(detector: nn.Module, scores: bool = True) -> nn.Module:
    """Copy a detector to torch's meta device, where it computes only shapes.

    Return the detector itself where one of its ops does not run there, as mmcv's compiled ones do not.
    Raise ConfigError where it has no dense outputs.
    """
    copied = copy.deepcopy(detector).to("meta").eval()
    try:
        _first_that_runs(lambda side: _pass(copied, (side, side), scores))
    except Exception:  # an op may raise any exception; a detector that is wrong fails again
        _first_that_runs(lambda side: shapes_of(detector, (side, side), scores))
        return detector
    return copied


FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AssertionError, AttributeError)  # of parts that do not fit
SIZES = ", or pad the views: FPG and NAS-FPN need dict(type='Pad', size_divisor=128) in the pipeline"
Shapes = tuple[LevelShapes, tuple[int, ...], int]  # grids and channels of every level, and K


def _first_that_runs(run: Callable[[int], T]) -> T:
    """Return what a detector computes for the smallest side of TRIAL_SIDES that it runs on. Raise its first error."""
    first: Exception | None = None
    for side in TRIAL_SIDES:
        try:
            return run(side)
        except torch.OutOfMemoryError:
            raise
        except (*FAILURES, ConfigError) as error:
            first = first or error
    assert first is not None
    raise first


def output_shapes(detector: nn.Module, pad_shape: tuple[int, int], scores: bool = True) -> Shapes:
    """Return (level shapes, C of each level, K) of a detector for a padded view.

    Raise ConfigError where it cannot compute them.

    scores: whether class scores are needed. Without them, K is 0 and the detector needs no dense head.
    """
    return shapes_of(copy_to_meta(detector, scores), pad_shape, scores)


def shapes_of(detector: nn.Module, pad_shape: tuple[int, int], scores: bool = True) -> Shapes:
    """Return the `output_shapes` by a pass of the detector itself, which may be a copy from `copy_to_meta`."""
    try:
        features, logits = _pass(detector, pad_shape, scores)
    except FAILURES as error:
        raise ConfigError(
            f"{type(detector).__name__}: no {'dense class scores' if scores else 'features'} for views of "
            f"{pad_shape[0]}x{pad_shape[1]}, because backbone, neck and head do not fit together; check in_channels"
            f"{SIZES if any(side % 128 for side in pad_shape) else ''}: {brief(error)}"
        ) from error
    levels = tuple((int(f.shape[2]), int(f.shape[3])) for f in features)
    channels = tuple(int(f.shape[1]) for f in features)
    if not scores:
        return levels, channels, 0
    require_class_scores(class_head(detector), logits)
    if [tuple(x.shape[2:]) for x in logits] != list(levels) or len({x.shape[1] for x in logits}) != 1:
        raise ConfigError(
            "class head: its levels differ from the neck's; FRS needs one score for each feature position"
        )
    return levels, channels, int(logits[0].shape[1])


def _pass(detector: nn.Module, pad_shape: tuple[int, int], scores: bool) -> tuple[list[Tensor], list[Tensor]]:
    training = detector.training
    try:
        with torch.no_grad():
            inputs = torch.zeros((1, 3, *pad_shape), device=next(detector.parameters()).device)
            if scores:
                return dense_outputs(detector.eval(), inputs)
            return dense_features(detector.eval(), inputs), []
    finally:
        detector.train(training)
