"""The outputs of a detector that FRS uses: the neck's features, and the class logits that are dense over the FPN.

One-stage detectors: the logits of bbox_head. Two-stage detectors: the RPN's objectness, never the RoI head's scores.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, brief
from pipeline.records import LevelShapes


def class_head(detector: nn.Module) -> nn.Module:
    """Return the dense head whose first output is the list of class logits, (B, K, H_l, W_l) for each level."""
    head = getattr(detector, "rpn_head", None) or getattr(detector, "bbox_head", None)
    if getattr(detector, "neck", None) is None or head is None:
        raise ConfigError(
            f"{type(detector).__name__}: expected a detector with a neck and a dense bbox_head or rpn_head"
        )
    if not getattr(head, "use_sigmoid_cls", True):
        raise ConfigError(f"{type(head).__name__}: expected a head with sigmoid class scores, found one with softmax")
    return head


def class_logits(output: Any) -> list[Tensor]:
    """Return the class logits from the output of a dense head."""
    logits = output[0] if isinstance(output, tuple | list) else None
    if not isinstance(logits, tuple | list) or not all(isinstance(x, Tensor) and x.dim() == 4 for x in logits):
        raise ConfigError("class head: expected a first output with one (B, K, H, W) tensor for each FPN level")
    return list(logits)


def dense_outputs(detector: Any, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Compute (FPN features, class logits) of every level for preprocessed images (B, 3, H, W)."""
    features = list(detector.extract_feat(inputs))
    return features, class_logits(class_head(detector)(tuple(features)))


def class_count(detector: nn.Module) -> int | None:
    """Return the number of classes that a detector predicts; None if its head has no num_classes."""
    head = getattr(getattr(detector, "roi_head", None) or detector, "bbox_head", None)
    if isinstance(head, nn.ModuleList):  # in a cascade, every stage predicts the same classes
        head = head[0]
    return getattr(head, "num_classes", None)


def copy_to_meta(detector: nn.Module) -> nn.Module:
    """Copy a detector to torch's meta device, where it computes only shapes."""
    class_head(detector)
    return copy.deepcopy(detector).to("meta").eval()


def output_shapes(detector: nn.Module, pad_shape: tuple[int, int]) -> tuple[LevelShapes, int, int]:
    """Return (level shapes, C, K) of a detector for a padded view. A copy from `copy_to_meta` is used directly."""
    if next(detector.parameters()).device.type != "meta":
        detector = copy_to_meta(detector)
    try:
        with torch.no_grad():
            features, logits = dense_outputs(detector, torch.empty((1, 3, *pad_shape), device="meta"))
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError, AttributeError) as error:
        raise ConfigError(
            f"{type(detector).__name__}: backbone, neck and head do not fit together; check in_channels: {brief(error)}"
        ) from error
    levels = tuple((int(f.shape[2]), int(f.shape[3])) for f in features)
    if [tuple(x.shape[2:]) for x in logits] != list(levels) or len({x.shape[1] for x in logits}) != 1:
        raise ConfigError(
            "class head: its levels differ from the neck's; FRS needs one score for each feature position"
        )
    return levels, int(features[0].shape[1]), int(logits[0].shape[1])
