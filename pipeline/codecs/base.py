"""What every codec does: the contract behind each file and folder here.

Shape legend: B batch, L levels, C channels, K score channels, (H_l, W_l) grid of level l, P positions of all levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from pipeline.cache.arrays import ArraySpec
from pipeline.codecs.packing import Sample
from pipeline.errors import CodecError
from pipeline.records import EncodedBatch, LevelShapes, TeacherOutput

KINDS = ("feature", "score")  # what is coded beside the map
Measure = Callable[[TeacherOutput], dict[str, float]]  # what stands in for an exact output -> error of each loss


class CalibrationSample(Protocol):
    """Teacher outputs that a codec is fitted to; computed anew for each iteration, so that memory is one batch."""

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        """Views of one part: 'learning' (statistics), 'choosing' (steps and ranks) or 'reported'; all are apart."""

    def probes(self, part: str, losses: Sequence[str]) -> Iterator[tuple[TeacherOutput, Measure]]:
        """The same, one view at a time, each with the error of the gradient of these losses (pipeline/losses/).

        All of them compare the same tensor. An error is NaN where the exact gradient is zero.
        """


class Codec(ABC):
    """Turns TeacherOutput into arrays of a shard and back.

    `settings` (JSON) and `tables` (arrays, stored once per cache in codec/) are all that decoding needs.
    """

    name: str
    ragged = False  # whether the shape of a shard's arrays is known only once its samples are encoded

    def __init__(self, settings: dict[str, Any], tables: dict[str, np.ndarray]) -> None:
        self.settings, self.tables = settings, tables
        self.channels: int = settings.get("channels", 0)
        self.score_channels: int = settings.get("score_channels", 0)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of KINDS those that this cache holds: setting `scores=False` leaves out the class scores."""
        return KINDS if self.settings.get("scores", True) else KINDS[:1]

    @abstractmethod
    def calibrate(self, sample: CalibrationSample) -> None:
        """Fill `tables` and complete `settings`. Raises CodecError where that cannot be done."""

    @abstractmethod
    def specs(self, levels: Sequence[LevelShapes], samples: Sequence[Sample] = ()) -> list[ArraySpec]:
        """Arrays of a shard that holds samples of these level shapes; a ragged codec needs the samples too."""

    @abstractmethod
    def encode(self, output: TeacherOutput) -> tuple[list[Sample], dict[str, float]]:
        """Arrays of each sample of a batch of equal shapes, and the errors this made (by name, batch mean)."""

    @abstractmethod
    def decode(self, batch: EncodedBatch) -> TeacherOutput:
        """On the batch's device; every level on the batch's common canvas, frs = 0 beyond a sample's own grid."""

    @abstractmethod
    def check_sample(self, sample: Sample, levels: LevelShapes) -> None:
        """Refuse arrays of a shard that `encode` never makes for these grids, on the host, before `decode` sees them.

        `sample`: as the shard stores it, so padded to its largest. Raises CorruptCache.
        """

    def gradient_error(self, loss: str) -> float:
        """What this codec does to the gradient of a loss (pipeline/losses/), measured at calibration on a probe."""
        return self.settings["probe_error"][loss]

    def validate(self) -> None:
        """Raise KeyError or ValueError where settings or tables lack what decoding needs."""
        if min(self.settings["channels"], self.settings["zstd"]) < 1:
            raise ValueError("settings channels or zstd out of range")
        if (self.settings["score_channels"] > 0) != ("score" in self.kinds):
            raise ValueError(f"settings score_channels {self.settings['score_channels']}, kept are {self.kinds}")

    def learn_channels(self, output: TeacherOutput) -> None:
        """Take C and K from the first output that calibration sees; K is 0 where scores are left out."""
        self.channels, self.score_channels = self._widths(output)
        self.settings.update(channels=self.channels, score_channels=self.score_channels)

    def _widths(self, output: TeacherOutput) -> tuple[int, int]:
        return output.features[0].shape[1], output.scores[0].shape[1] if "score" in self.kinds else 0

    def check(self, output: TeacherOutput) -> None:
        """Refuse what no codec may store: other channel counts than calibrated, NaN, infinity, scores not in [0, 1]."""
        found = self._widths(output)
        if found != (self.channels, self.score_channels):
            raise CodecError(f"expected (C, K) = {(self.channels, self.score_channels)}, found {found}")
        unsound = output.unsound()
        if unsound is not None:
            raise CodecError(f"level {unsound[1]}: the teacher's output holds NaN or infinity", sample=unsound[0])
        for level, scores in enumerate(output.scores):
            if float(scores.amin()) < 0 or float(scores.amax()) > 1:
                raise CodecError(f"level {level}: scores outside [0, 1]; are they sigmoid probabilities?")
