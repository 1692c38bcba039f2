"""Changes of a built detector that keep its weights: their memory layout, and convolutions that skip positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.mmdet_compat.registry import MaskedConv2d

PLAIN = ("torch.nn", "mmcv.cnn.bricks.wrappers")  # modules whose convolutions use their weights as they are


def use_fast_layout(detector: nn.Module, device: torch.device) -> None:
    """Convert a detector's weights to channels_last on a CPU: a sixth faster, results differ in the last digits only.

    Convolutions that recompute their weights in each pass, such as weight standardisation, keep their layout: some
    of them reshape the weights, which channels_last does not allow.
    """
    if device.type != "cpu":
        return
    standardised = [m for m in detector.modules() if isinstance(m, nn.Conv2d) and not uses_weights_as_they_are(m)]
    kept = {id(module.weight): module.weight.data for module in standardised}
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in standardised:
        module.weight.data = kept[id(module.weight)]


def uses_weights_as_they_are(module: nn.Conv2d) -> bool:
    """Whether the forward pass of a convolution is torch's own."""
    return type(module).forward.__module__.startswith(PLAIN)


class UnmaskedConv2d(MaskedConv2d):
    """A masked convolution that computes every position."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(input)


def unmask(detector: nn.Module) -> None:
    """Let guided anchoring compute every position.

    When it predicts, it skips positions without objects to save time, leaves their scores at 0, and takes one image at
    a time. A teacher's scores are those of training.
    """
    for module in detector.modules():
        if type(module) is MaskedConv2d:
            module.__class__ = UnmaskedConv2d
