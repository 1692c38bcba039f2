"""Outputs of a teacher whose levels resemble each other and whose scores follow from the features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline.codecs.base import Codec
from pipeline.codecs.frs2 import fit_residuals, fit_scores
from pipeline.codecs.registry import calibrate_codec, read_options
from pipeline.records import TeacherOutput
from tests.helpers.outputs import RandomSample

CHANNELS, CLASSES = 8, 6
SIZES = [(16, 24), (8, 12), (4, 6)]
STEPS = 120  # of the network in tests


def related_output(
    batch: int, sizes: list[tuple[int, int]], channels: int = CHANNELS, classes: int = CLASSES, seed: int = 0
) -> TeacherOutput:
    """Make levels of one smooth field with noise, and scores of its values. `sizes` are (H, W) of the levels."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(7)
    mixing, head = (torch.randn(n, channels, generator=fixed) / channels**0.5 for n in (channels, classes))
    height, width = sizes[-1]
    field = torch.randn(batch, channels, max(2, height // 2), max(2, width // 2), generator=generator)
    features, scores = [], []
    for level, size in enumerate(sizes):
        smooth = F.interpolate(field, size, mode="bilinear")
        values = torch.einsum("ij,bjhw->bihw", mixing, smooth) * (level + 1)
        features.append(values + 0.05 * torch.randn(values.shape, generator=generator))
        scores.append((3 * torch.einsum("kj,bjhw->bkhw", head, smooth) - 3).sigmoid())
    return TeacherOutput(features, scores, [s.amax(dim=1) for s in scores])


class RelatedSample(RandomSample):
    """Related outputs to calibrate on."""

    def __init__(
        self, channels: int = CHANNELS, classes: int = CLASSES, sizes: list[tuple[int, int]] = SIZES, views: int = 12
    ) -> None:
        super().__init__(channels, classes, sizes)
        self._make = lambda seed: related_output(2, sizes, channels, classes, seed)
        self.seeds = {"learning": range(views), "choosing": (100, 101), "reported": (200, 201)}
        self.trained: list[int] = []

    def training(self, steps: int) -> Any:
        self.trained.append(steps)
        return lambda: None


def related_codec(sample: RelatedSample | None = None, **settings: Any) -> Codec:
    """Calibrate a codec, frs2 by default, on related outputs."""
    return calibrate_codec(read_options({"type": "frs2", "quality": 0.03, **settings}), sample or RelatedSample())


@contextmanager
def short_training(steps: int = 10) -> Iterator[None]:
    """Train the score network for a few steps, and keep it although it hardly pays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_scores, "STEPS", steps)
        patch.setattr(fit_residuals, "PAYS", 9.0)
        yield
