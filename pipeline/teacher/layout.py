"""The memory layout of a detector's weights."""

from __future__ import annotations

import torch
from torch import nn

PLAIN = ("torch.nn", "mmcv.cnn.bricks.wrappers")  # modules whose convolutions use their weights as they are


def use_fast_layout(detector: nn.Module, device: torch.device) -> None:
    """Convert a detector's weights to channels_last on a CPU: a sixth faster, results differ in the last digits only.

    Convolutions that compute their weights anew in each pass, such as weight standardisation, keep their layout: some
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
