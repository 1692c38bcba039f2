"""Outputs of a GFL teacher: related levels, with box distributions."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.records import TeacherOutput
from tests.helpers.related import RelatedSample, related_output

SIZES = [(12, 16), (6, 8)]
BINS = 5


def boxed(seed: int, batch: int = 2, sizes: list[tuple[int, int]] = SIZES) -> TeacherOutput:
    """A related output with distributions that peak somewhere."""
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for h, w in sizes:
        peak = torch.rand(batch, 4, 1, h, w, generator=generator) * (BINS - 1)
        z = 8 - 6 * (torch.arange(BINS)[:, None, None] - peak).abs()
        boxes.append((z + torch.randn(z.shape, generator=generator)).flatten(1, 2) + 3)
    return replace(related_output(batch, sizes, seed=seed), boxes=boxes)


class BoxedSample(RelatedSample):
    def __init__(self) -> None:
        super().__init__(sizes=SIZES, views=6)
        self._make = boxed
