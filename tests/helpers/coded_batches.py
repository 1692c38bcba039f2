"""Batches of random outputs that mix grids and empty maps, coded on a device, and comparisons of what is decoded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.base import Codec
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.packing import Sample, stack
from pipeline.records import EncodedBatch, LevelShapes, TeacherOutput
from tests.helpers.outputs import random_output

CPU = torch.device("cpu")
CHANNELS = 32


def views(codec: Codec) -> list[TeacherOutput]:
    """Batches of different grids; the last two have a level, or all levels, where the teacher sees nothing."""
    classes = codec.score_channels or 3
    grids = [[(16, 24), (8, 12)], [(13, 7), (7, 4)], [(5, 30), (3, 15)], [(16, 9), (8, 5)], [(9, 11), (5, 6)]]
    made = [random_output(2 - n % 2, sizes, codec.channels, classes, n) for n, sizes in enumerate(grids)]
    return [*made[:3], _blank(made[3], [0]), _blank(made[4], [0, 1])]


def _blank(given: TeacherOutput, levels: list[int]) -> TeacherOutput:

    def empty(tensors: list[Tensor]) -> list[Tensor]:
        return [t * (n not in levels) for n, t in enumerate(tensors)]

    return TeacherOutput(given.features, empty(given.scores), empty(given.frs))


def encoded(codec: Codec, outputs: list[TeacherOutput], device: torch.device = CPU) -> EncodedBatch:
    """One batch of all samples, coded on a device."""
    samples: list[Sample] = []
    levels: list[LevelShapes] = []
    for given in outputs:
        coded, _ = codec.encode(given.to(device))
        assert all(isinstance(array, np.ndarray) for sample in coded for array in sample.values())
        samples += [codec.read_sample(sample, given.levels) for sample in coded]
        levels += [given.levels] * len(coded)
    return stack(samples, levels)


def symbols(codec: Frs, batch: EncodedBatch) -> dict[str, list[Tensor]]:
    """The whole numbers that the tokens stand for, on the CPU."""
    maps = codec.coded_maps(batch)
    return {what: [level.cpu() for level in codec.planes(batch, maps, what)] for what in codec.kinds}


def close(one: list[Tensor], other: list[Tensor]) -> bool:
    """Equal to 1e-5 of the largest value of all levels."""
    largest = max(float(level.abs().max()) for level in one)
    return all(float((a - b).abs().max()) <= 1e-5 * largest for a, b in zip(one, other, strict=True))


def equal(one: TeacherOutput, other: TeacherOutput) -> bool:
    """To the bit."""
    parts = ("features", "scores", "frs")
    pairs = [pair for part in parts for pair in zip(getattr(one, part), getattr(other, part), strict=True)]
    return all(torch.equal(a, b) for a, b in pairs) and one.grids == other.grids
