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

# Heads whose first output is a probability. It is converted to a logit.
ACTIVATED = ("TOODHead", "CenterNetHead")


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


def class_logits(head: nn.Module, output: Any) -> list[Tensor]:
    """Return the class logits from the output of a dense head."""
    name = type(head).__name__
    first = output[0] if isinstance(output, tuple | list) and output else None
    if not isinstance(first, tuple | list) or not all(isinstance(x, Tensor) and x.dim() == 4 for x in first):
        raise ConfigError(f"{name}: expected a first output with one (B, K, H, W) tensor for each FPN level")
    if any(parent.__name__ in ACTIVATED for parent in type(head).__mro__):
        tiny = torch.finfo(torch.float32).eps
        return [torch.logit(x.float(), tiny) for x in first]
    return list(first)


def require_class_scores(head: nn.Module, logits: list[Tensor]) -> None:
    """Raise ConfigError where the first output of a head is not one score for each class and prior.

    A head that also predicts boxes there, as YOLOv3 does, has other channels. On values, a head that applies a sigmoid
    itself and is not listed in ACTIVATED is detected too. On the meta device only the channels are checked.
    """
    name, channels = type(head).__name__, int(logits[0].shape[1])
    classes = getattr(head, "cls_out_channels", None) or getattr(head, "num_classes", None)
    if classes is None:
        raise ConfigError(f"{name}: has neither cls_out_channels nor num_classes, so its output cannot be checked")
    priors = prior_count(head)
    if channels != classes * priors:
        raise ConfigError(
            f"{name}: its first output has {channels} channels, expected {classes} classes x {priors} priors = "
            f"{classes * priors}; it does not contain class scores only, so FRS cannot use this head"
        )
    if logits[0].is_meta:
        return
    low, high = min(float(x.min()) for x in logits), max(float(x.max()) for x in logits)
    if 0 <= low < high <= 1:
        raise ConfigError(
            f"{name}: its class scores lie between {low:.3f} and {high:.3f}, so they seem to be probabilities, "
            "expected logits; add the head to ACTIVATED in pipeline/teacher/heads.py if it applies a sigmoid"
        )


def prior_count(head: nn.Module) -> int:
    """Return the number of priors (anchors or points) of a position; 1 if the head has none."""
    generator = getattr(head, "prior_generator", None)
    count = getattr(head, "num_base_priors", None) or getattr(generator, "num_base_priors", None) or 1
    return int(count[0] if isinstance(count, list | tuple) else count)


def dense_outputs(detector: Any, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Compute (FPN features, class logits) of every level for preprocessed images (B, 3, H, W)."""
    features, head = list(detector.extract_feat(inputs)), class_head(detector)
    return features, class_logits(head, head(tuple(features)))


def require_logits(detector: Any) -> None:
    """Run a detector on a small image of noise, and check its class scores with `require_class_scores`."""
    device = next(detector.parameters()).device
    noise = torch.rand((1, 3, 128, 128), generator=torch.Generator().manual_seed(0)).to(device)
    training = detector.training
    try:
        with torch.no_grad():
            _, logits = dense_outputs(detector.eval(), noise * 4 - 2)
    finally:
        detector.train(training)
    require_class_scores(class_head(detector), logits)


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
    require_class_scores(class_head(detector), logits)
    levels = tuple((int(f.shape[2]), int(f.shape[3])) for f in features)
    if [tuple(x.shape[2:]) for x in logits] != list(levels) or len({x.shape[1] for x in logits}) != 1:
        raise ConfigError(
            "class head: its levels differ from the neck's; FRS needs one score for each feature position"
        )
    return levels, int(features[0].shape[1]), int(logits[0].shape[1])
