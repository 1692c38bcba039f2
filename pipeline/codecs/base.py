"""What every codec does: the contract of the files and folders here.

Shape legend: B batch, L levels, C channels, K score channels, (H_l, W_l) grid of level l, P positions of all levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from pipeline.cache.arrays import ArraySpec
from pipeline.codecs.packing import Sample
from pipeline.codecs.settings import Calibration, CodecOptions, to_json
from pipeline.errors import CodecError
from pipeline.fields import read_settings
from pipeline.losses.base import Loss
from pipeline.records import EncodedBatch, LevelShapes, TeacherOutput

Measure = Callable[[TeacherOutput], dict[str, float]]  # a decoded output -> gradient error of each loss


class CalibrationSample(Protocol):
    """Teacher outputs that a codec is fitted to; computed again for each iteration, so that memory is one batch."""

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        """Yield the views of a part: 'learning' (statistics), 'choosing' (steps, ranks), 'reported'; no view twice."""

    def probes(self, part: str, losses: Sequence[str]) -> Iterator[tuple[TeacherOutput, Measure]]:
        """Yield the same views one by one, each with the measure of the gradient error of these losses (`Loss.name`).

        All of them compare the same tensor. An error is NaN where the exact gradient is zero.
        """


@dataclass(frozen=True)
class BlockTokens:
    """Tokens (T,) int32 of one tensor that hold a value; `level` (T,), and `richness` (T,) of their block.

    richness: rank of the block's map within its level, from 0 (weakest) to 1.
    """

    tokens: np.ndarray
    level: np.ndarray
    richness: np.ndarray


@dataclass(frozen=True, eq=False)
class Codec(ABC):
    """Turns TeacherOutput into arrays of a shard and back. Calibration makes a codec; nothing changes it afterwards.

    options: what the config says. calibration: what was found on the teacher's views. tables: arrays, stored once per
    cache in codec/. stored: the settings of a codec.json that was read; shards must repeat them exactly.
    """

    name: ClassVar[str]
    ragged: ClassVar[bool] = False  # whether the shapes of a shard's arrays are known only once its samples are encoded
    options_type: ClassVar[type[CodecOptions]]
    calibration_type: ClassVar[type[Any]]

    options: CodecOptions
    calibration: Calibration
    tables: Mapping[str, np.ndarray]
    stored: Mapping[str, Any] | None = None

    @classmethod
    def from_json(cls, settings: dict[str, Any], tables: Mapping[str, np.ndarray]) -> Self:
        """Make the codec of a cache. Raises ConfigError, KeyError or ValueError where something does not fit."""
        options = read_settings(cls.options_type, settings, "settings", ignore_unknown=True)
        calibration = read_settings(cls.calibration_type, settings, "settings", ignore_unknown=True)
        codec = cls(options, calibration, tables, settings)
        codec.validate()
        return codec

    @classmethod
    @abstractmethod
    def calibrate(cls, options: Any, sample: CalibrationSample) -> Codec:
        """Fit a codec to a sample of views. Raises CodecError where that cannot be done."""

    @abstractmethod
    def specs(self, levels: Sequence[LevelShapes], samples: Sequence[Sample] = ()) -> list[ArraySpec]:
        """List the arrays of a shard that holds samples of these level shapes; a ragged codec needs the samples too."""

    @abstractmethod
    def encode(self, output: TeacherOutput) -> tuple[list[Sample], dict[str, float]]:
        """Encode a batch of equal shapes: the arrays of each sample, and the errors by name, mean over the batch."""

    @abstractmethod
    def decode(self, batch: EncodedBatch) -> TeacherOutput:
        """Decode on the batch's device; every level on the batch's common canvas, frs = 0 outside a sample's grid."""

    @abstractmethod
    def check_sample(self, sample: Sample, levels: LevelShapes) -> None:
        """Refuse arrays of a shard that `encode` never makes for these grids, on the host, before `decode` sees them.

        `sample`: as the shard stores it, padded to the shard's largest. Raises CorruptCache.
        """

    @abstractmethod
    def compare(self, exact: TeacherOutput, stored: EncodedBatch) -> dict[str, float]:
        """Compare stored samples with the teacher's output: {'features', 'scores' where kept, 'frs'}.

        Each value is the largest error over the error allowed: at most 1 on the machine that made the cache.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """Options and calibration as codec.json holds them, and as every shard repeats them."""
        return dict(self.stored) if self.stored is not None else {**self.options.to_json(), **to_json(self.calibration)}

    @property
    def channels(self) -> int:
        return self.calibration.channels

    @property
    def score_channels(self) -> int:
        """K, 0 where the class scores are left out."""
        return self.calibration.score_channels

    @property
    def kinds(self) -> tuple[str, ...]:
        """The tensors that this cache holds beside the map: 'feature', and 'score' unless `scores=False`."""
        return self.options.kinds

    @property
    def allowed_error(self) -> float:
        """The gradient error allowed to each loss; 0 for an exact codec."""
        return 0.0

    def gradient_error(self, loss: str) -> float | None:
        """Return the error of a loss's gradient on the probe (`Loss.name`); None if it was not measured."""
        return 0.0

    def serves(self, loss: Loss) -> bool:
        """Return whether calibration kept the gradient of this loss within `allowed_error`."""
        return True

    def excess(self) -> float:
        """Return the largest measured error of a loss that it serves, over `allowed_error`; 0 for an exact codec."""
        return 0.0

    def coarser(self, factor: float) -> Codec | None:
        """Return this codec with its quantiser steps multiplied; None for a codec without steps."""
        return None

    def block_tokens(self, what: str, sample: Sample, levels: LevelShapes) -> BlockTokens | None:
        """Return which tokens of a tensor lie where; None for a codec that stores every position alike."""
        return None

    def validate(self) -> None:
        """Raise KeyError or ValueError where calibration and tables do not fit together."""
        if (self.score_channels > 0) != ("score" in self.kinds):
            raise ValueError(f"settings.score_channels: {self.score_channels}, but the cache holds {self.kinds}")

    def check(self, output: TeacherOutput) -> None:
        """Refuse a batch that this codec may not store. Raises CodecError."""
        check_output(output, (self.channels, self.score_channels))


def channels_of(output: TeacherOutput, kinds: Sequence[str]) -> tuple[int, int]:
    """Return (C, K) of an output; K is 0 where scores are left out."""
    return output.features[0].shape[1], output.scores[0].shape[1] if "score" in kinds else 0


def check_output(output: TeacherOutput, channels: tuple[int, int]) -> None:
    """Refuse what no codec may store: other (C, K) than calibrated, NaN, infinity, scores outside [0, 1]."""
    found = channels_of(output, ("feature", "score") if channels[1] else ("feature",))
    if found != channels:
        raise CodecError(f"expected (C, K) = {channels}, found {found}")
    unsound = output.unsound()
    if unsound is not None:
        raise CodecError(f"level {unsound[1]}: NaN or infinity in the teacher's output", sample=unsound[0])
    for level, scores in enumerate(output.scores):
        if float(scores.amin()) < 0 or float(scores.amax()) > 1:
            raise CodecError(f"level {level}: scores outside [0, 1]; are they sigmoid probabilities?")
