"""Random outputs of a teacher, and codecs calibrated on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from pipeline.codecs.base import Codec, Measure
from pipeline.codecs.registry import calibrate_codec, read_options
from pipeline.losses.registry import loss_named
from pipeline.records import TeacherOutput


def random_output(batch: int, sizes: list[tuple[int, int]], channels: int, scores: int, seed: int = 0) -> TeacherOutput:
    """Make smooth features and mostly weak scores, as teachers give them; `sizes` are (H, W) of the levels."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=torch.Generator().manual_seed(99)) / channels**0.5
    features, probabilities = [], []
    for h, w in sizes:
        coarse = torch.randn(batch, channels, max(1, h // 4), max(1, w // 4), generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (h, w), mode="bilinear")
        features.append(torch.einsum("ij,bjhw->bihw", mixing, smooth))
        logits = torch.randn(batch, scores, max(1, h // 4), max(1, w // 4), generator=generator) * 3 - 5
        probabilities.append(torch.nn.functional.interpolate(logits, (h, w), mode="bilinear").sigmoid())
    return TeacherOutput(features, probabilities, [p.amax(dim=1) for p in probabilities])


class RandomSample:
    """Seeded outputs to calibrate on. Measures the weighted tensor's error instead of a gradient's."""

    def __init__(self, channels: int, scores: int, sizes: list[tuple[int, int]]) -> None:
        self._make = lambda seed: random_output(2, sizes, channels, scores, seed)
        self.seeds: dict[str, Sequence[int]] = {"learning": range(4), "choosing": (10, 11), "reported": (20, 21)}

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        yield from (self._make(seed) for seed in self.seeds[part])

    def probes(self, part: str, losses: Sequence[str], near: bool = False) -> Iterator[tuple[TeacherOutput, Measure]]:
        for exact in self.outputs(part):
            yield exact, lambda coded, exact=exact: {loss: weighted_error(loss, coded, exact) for loss in losses}

    def unexplained(self, what: str, near: bool = False) -> float:
        return 0.1 if near else 0.4

    def training(self, steps: int) -> Callable[[], None]:
        return lambda: None


def weighted_error(loss: str, coded: TeacherOutput, exact: TeacherOutput) -> float:
    """Compute the relative error of the tensor that `loss` compares, weighted by the map as the loss weights it."""
    what, ones = loss_named(loss).compares, [torch.ones_like(m) for m in exact.frs]
    pairs = list(zip(coded.values(what), exact.values(what), exact.frs if loss_named(loss).weighted else ones))
    lost = sum(float((m[:, None] * (x - y) ** 2).sum() / m.sum()) for x, y, m in pairs)
    return (lost / sum(float((m[:, None] * y**2).sum() / m.sum()) for _, y, m in pairs)) ** 0.5


def calibrated_codec(kind: str, channels: int = 8, classes: int = 6, levels: int = 2, **settings_: Any) -> Codec:
    """Make a codec of `kind` with tables of random outputs on grids of 16 x 24 and 8 x 12 positions."""
    sample = RandomSample(channels, classes, [(16, 24), (8, 12)][:levels])
    return calibrate_codec(read_options({"type": kind, **settings_}), sample)
