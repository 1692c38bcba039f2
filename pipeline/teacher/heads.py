"""The outputs of a detector that distillation uses: the neck's features, and class logits that are dense over the FPN.

One-stage detectors: the logits of bbox_head. Two-stage detectors: the RPN's objectness, never the RoI head's scores.
Feature losses need no class logits, so they work for detectors without such a head, and for backbones.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, brief
from pipeline.records import LevelShapes
from pipeline.teacher.class_scores import class_logits, require_class_scores, require_no_sigmoid
from pipeline.teacher.raw_scores import require_raw_scores


def class_head(detector: nn.Module) -> nn.Module:
    """Return the dense head whose output contains class scores, (B, K, H_l, W_l) for each level."""
    head = getattr(detector, "rpn_head", None) or getattr(detector, "bbox_head", None)
    if getattr(detector, "neck", None) is None or head is None:
        raise ConfigError(
            f"{type(detector).__name__}: expected a detector with a neck and a dense bbox_head or rpn_head"
        )
    if not getattr(head, "use_sigmoid_cls", True):
        raise ConfigError(f"{type(head).__name__}: expected a head with sigmoid class scores, found one with softmax")
    return head


def dense_features(detector: Any, inputs: Tensor) -> list[Tensor]:
    """Compute the features [(B, C, H_l, W_l)] of preprocessed images (B, 3, H, W)."""
    features = list(detector.extract_feat(inputs))
    if not features or not all(isinstance(x, Tensor) and x.dim() == 4 for x in features):
        raise ConfigError(f"{type(detector).__name__}: expected features (B, C, H, W) for each level")
    widths = [int(x.shape[1]) for x in features]
    if len(set(widths)) != 1:
        raise ConfigError(
            f"{type(detector).__name__}: its levels have {widths} channels, expected the same number; choose levels of "
            "one width (out_indices), or a neck with equal out_channels"
        )
    return features


def dense_outputs(detector: Any, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Compute (features, class logits) of every level for preprocessed images (B, 3, H, W)."""
    features, head = dense_features(detector, inputs), class_head(detector)
    return features, class_logits(head, head(tuple(features)))


def require_logits(detector: Any) -> None:
    """Run a detector on a small image of noise. Raise ConfigError where it has no usable class scores."""
    head, device = class_head(detector), next(detector.parameters()).device
    noise = torch.rand((1, 3, 128, 128), generator=torch.Generator().manual_seed(0)).to(device)
    training = detector.training
    try:
        with torch.no_grad():
            features, logits = dense_outputs(detector.eval(), noise * 4 - 2)
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
        _pass(copied, (128, 128), scores)
    except Exception:  # an op may raise any exception; a detector that is wrong fails again
        shapes_of(detector, (128, 128), scores)
        return detector
    return copied


FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AssertionError, AttributeError)  # of parts that do not fit


def output_shapes(detector: nn.Module, pad_shape: tuple[int, int], scores: bool = True) -> tuple[LevelShapes, int, int]:
    """Return (level shapes, C, K) of a detector for a padded view. Raise ConfigError where it cannot compute them.

    scores: whether class scores are needed. Without them, K is 0 and the detector needs no dense head.
    """
    return shapes_of(copy_to_meta(detector, scores), pad_shape, scores)


def shapes_of(detector: nn.Module, pad_shape: tuple[int, int], scores: bool = True) -> tuple[LevelShapes, int, int]:
    """Return the `output_shapes` by a pass of the detector itself, which may be a copy from `copy_to_meta`."""
    try:
        features, logits = _pass(detector, pad_shape, scores)
    except FAILURES as error:
        raise ConfigError(
            f"{type(detector).__name__}: no dense class scores for views of {pad_shape[0]}x{pad_shape[1]}, because "
            f"backbone, neck and head do not fit together; check in_channels: {brief(error)}"
        ) from error
    levels = tuple((int(f.shape[2]), int(f.shape[3])) for f in features)
    channels = int(features[0].shape[1])
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
