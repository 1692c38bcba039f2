"""Test whether the first output of a dense head is a logit: shift the convolution that makes it, and see it follow.

Values alone do not tell: a log-probability looks like a logit, and a percentage like a confident one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.teacher.class_scores import PROBABILITY, first_output, score_rule_of

SHIFT = 50.0  # of one channel of a convolution; any activation is saturated there
FOLLOWS = 1.5  # the least ratio of the effects of twice the shift and of one shift; a linear output has 2


def require_raw_scores(head: nn.Module, features: list[Tensor]) -> None:
    """Raise ConfigError where the first output of a head is not what RULES or a plain head needs.

    A head of the rule PROBABILITY must return values from 0 to 1. Any other head must return the output of a
    convolution, up to a linear function. Where no convolution has the shape of the output, it is not tested.
    """
    name, before = type(head).__name__, first_output(head, head(tuple(features)))
    if not all(bool(level.isfinite().all()) for level in before):
        raise ConfigError(f"{name}: its class scores are NaN or infinite on an image of noise; check the weights")
    if score_rule_of(type(head)) == PROBABILITY:
        low, high = min(float(x.min()) for x in before), max(float(x.max()) for x in before)
        if low < 0 or high > 1:
            raise ConfigError(
                f"{name}: extends a head that returns probabilities, but its first output lies between {low:.3g} and "
                f"{high:.3g}; return probabilities, or do not extend that head"
            )
        return
    effects = [_effects(head, features, module, before[0]) for module in _sources(head, features, before[0].shape)]
    effects = [found for found in effects if any(one > 0 for one, _ in found)]
    if effects and not any(all(twice > FOLLOWS * one > 0 for one, twice in found) for found in effects):
        raise ConfigError(
            f"{name}: its class scores saturate, so the head applies an activation to them, expected logits; return "
            "logits, or add the head to RULES in pipeline/teacher/class_scores.py"
        )


def _sources(head: nn.Module, features: list[Tensor], shape: torch.Size) -> list[nn.Module]:
    """Return the convolutions of a head whose output has the shape of its first class scores."""
    found: dict[nn.Module, None] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.shape == shape:
            found[module] = None

    _with_hooks([module for module in head.modules() if isinstance(module, nn.Conv2d)], note, head, features)
    return list(found)


def _effects(head: nn.Module, features: list[Tensor], source: nn.Module, before: Tensor) -> list[tuple[float, float]]:
    """Return how far the first channel moves for one shift and for twice the shift, upwards and downwards."""
    found = []
    for sign in (1.0, -1.0):
        moved = []
        for shift in (sign * SHIFT, 2 * sign * SHIFT):

            def add(_: nn.Module, __: Any, output: Tensor, shift: float = shift) -> Tensor:
                return torch.cat([output[:, :1] + shift, output[:, 1:]], dim=1)

            after = first_output(head, _with_hooks([source], add, head, features))[0]
            moved.append(float((after - before)[:, 0].abs().mean()))
        found.append((moved[0], moved[1]))
    return found


def _with_hooks(modules: list[nn.Module], hook: Callable[..., Any], head: nn.Module, features: list[Tensor]) -> Any:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        return head(tuple(features))
    finally:
        for handle in handles:
            handle.remove()
