"""Class scores of dense heads: one logit for each class and prior of a position, from whatever a head returns.

A head with a separate objectness trains its class scores on positives only. The chance of an object, which the richness
map needs, is then the product of both, so the logit of the product is used, for teacher and student alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import MODELS, Config, type_name

EPSILON = torch.finfo(torch.float32).eps
PROBABILITY = "probability"  # name of the rule of heads that return sigmoid(logit)


def class_logits(head: nn.Module, output: Any) -> list[Tensor]:
    """Return the class logits (B, K, H_l, W_l) of every level from the output of a dense head.

    Raise ConfigError where the first output is not one map for each level.
    """
    first = first_output(head, output)
    rule = next((RULES[name] for name in _parents(type(head)) if name in RULES), None)
    return first if rule is None else rule[1](head, output)


def first_output(head: nn.Module, output: Any) -> list[Tensor]:
    """Return the first output of a dense head as it is: a tensor (B, K, H_l, W_l) for each level. Raise ConfigError."""
    first = output[0] if isinstance(output, tuple | list) and output else None
    if not isinstance(first, tuple | list) or not all(isinstance(x, Tensor) and x.dim() == 4 for x in first):
        raise ConfigError(
            f"{type(head).__name__}: expected a first output with one (B, K, H, W) tensor for each FPN level"
        )
    return list(first)


def score_rule(model: Config) -> str | None:
    """Return how the class scores of a detector's config are made; None if the head returns their logits itself."""
    head = model.get("rpn_head") or model.get("bbox_head")
    kind = head.get("type") if isinstance(head, dict) else None
    found = kind if isinstance(kind, type) else MODELS.get(type_name(kind)) if kind is not None else None
    return score_rule_of(found)


def score_rule_of(head: type | None) -> str | None:
    """Return the name of the rule of a head's class; None if it has none."""
    return next((RULES[name][0] for name in _parents(head) if name in RULES), None)


def _parents(kind: type | None) -> list[str]:
    return [parent.__name__ for parent in getattr(kind, "__mro__", ())]


def _from_probability(head: nn.Module, output: Any) -> list[Tensor]:
    return [torch.logit(x.float(), EPSILON) for x in output[0]]


def _with_objectness(head: nn.Module, output: Any) -> list[Tensor]:
    """Use the third output, the logit of the objectness (B, 1, H, W)."""
    return [logit_of_product(score, objectness) for score, objectness in zip(output[0], output[2])]


def _from_yolov3(head: Any, output: Any) -> list[Tensor]:
    """Take objectness and classes out of (B, A (5 + classes), H, W): x, y, w, h, objectness, classes of each anchor."""
    found = []
    for level in output[0]:
        batch, _, height, width = level.shape
        parts = level.view(batch, -1, head.num_attrib, height, width)
        found.append(logit_of_product(parts[:, :, 5:], parts[:, :, 4:5]).flatten(1, 2))
    return found


def logit_of_product(one: Tensor, other: Tensor) -> Tensor:
    """Return logit(sigmoid(one) sigmoid(other)), stable for large values. Computed in float32."""
    log = (F.logsigmoid(one.float()) + F.logsigmoid(other.float())).clamp_max(-EPSILON)
    return log - torch.log(-torch.expm1(log))


# By class name of the head or of one that it extends. The name of a rule is part of a cache's recipe.
RULES: dict[str, tuple[str, Callable[[Any, Any], list[Tensor]]]] = {
    "TOODHead": (PROBABILITY, _from_probability),
    "CenterNetHead": (PROBABILITY, _from_probability),
    "YOLOXHead": ("class x objectness", _with_objectness),
    "AutoAssignHead": ("class x objectness", _with_objectness),
    "YOLOV3Head": ("class x objectness", _from_yolov3),
}


def require_class_scores(head: nn.Module, logits: list[Tensor]) -> None:
    """Raise ConfigError where the logits of a head are not one score for each class and prior.

    A head that also predicts boxes there has other channels.
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


def require_no_sigmoid(head: nn.Module, logits: list[Tensor]) -> None:
    """Raise ConfigError where all logits lie between 0 and 1: the head applies a sigmoid and has no entry in RULES."""
    low, high = min(float(x.min()) for x in logits), max(float(x.max()) for x in logits)
    if 0 <= low < high <= 1:
        raise ConfigError(
            f"{type(head).__name__}: its class scores lie between {low:.3f} and {high:.3f}, so they seem to be "
            "probabilities, expected logits; if the head applies a sigmoid, add it to RULES in "
            "pipeline/teacher/class_scores.py"
        )


def prior_count(head: nn.Module) -> int:
    """Return the number of priors (anchors or points) of a position; 1 if the head has none."""
    generator = getattr(head, "prior_generator", None)
    count = getattr(head, "num_base_priors", None) or getattr(generator, "num_base_priors", None) or 1
    return int(count[0] if isinstance(count, list | tuple) else count)
