"""The interface of a codec.

Shapes: B batch, L levels, C channels, K score channels, (H_l, W_l) grid of level l, P positions of all levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from pipeline.cache.arrays import ArraySpec
from pipeline.cache.items import Item
from pipeline.cache.plausible import (
    decoded_bytes,
    most_bytes,
    padded_positions,
    read_channels,
    require_plausible_batch,
)
from pipeline.codecs.packing import Sample
from pipeline.codecs.settings import Calibration, CodecOptions, to_json
from pipeline.errors import CodecError
from pipeline.fields import read_settings
from pipeline.losses.base import Loss
from pipeline.records import EncodedBatch, LevelShapes, TeacherOutput, extremes

Measure = Callable[[TeacherOutput], dict[str, float]]  # a decoded output -> gradient error of each loss


class CalibrationSample(Protocol):
    """Teacher outputs to fit a codec to. Each iteration computes them again, so only one batch is in memory."""

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        """Yield the views of a part: 'learning' (statistics), 'choosing' (steps, coders) or 'reported'.

        No view is in two parts.
        """

    def probes(self, part: str, losses: Sequence[str], near: bool = False) -> Iterator[tuple[TeacherOutput, Measure]]:
        """Yield the same views one by one, each with the measure of the gradient error of these losses.

        losses: `Loss.name` of losses that compare the same tensor. near: measure on the student twice as near to the
        teacher. An error is NaN if the exact gradient is zero.
        """

    def unexplained(self, what: str, near: bool = False) -> float:
        """Return the share of the variance of 'feature' or 'score' that the student of `probes` does not explain."""

    def training(self, steps: int) -> Callable[[], bool | None]:
        """Announce the training of a network in so many steps.

        Return a function to call after each step. It may return False, to end the training there.
        """


@dataclass(frozen=True)
class BlockTokens:
    """The tokens of one tensor that encode a value: tokens (T,) int32, level (T,), richness (T,) of their block.

    richness: rank of the block within its level by the sum of the map, from 0 (weakest) to 1.
    """

    tokens: np.ndarray
    level: np.ndarray
    richness: np.ndarray


@dataclass(frozen=True, eq=False)
class Codec(ABC):
    """Converts TeacherOutput to the arrays of a shard and back. Immutable after calibration.

    options: from the config. calibration: measured on the teacher's views. tables: arrays that are stored once per
    cache, in codec/. stored: the settings of the codec.json it was read from, which all shards must repeat exactly.
    """

    name: ClassVar[str]
    ragged: ClassVar[bool] = False  # True if the shapes of a shard's arrays depend on its encoded samples
    trained: ClassVar[bool] = False  # True if another machine cannot calibrate the same tables
    options_type: ClassVar[type[CodecOptions]]
    calibration_type: ClassVar[type[Any]]

    options: CodecOptions
    calibration: Calibration
    tables: Mapping[str, np.ndarray]
    stored: Mapping[str, Any] | None = None

    @classmethod
    def from_json(cls, settings: dict[str, Any], tables: Mapping[str, np.ndarray]) -> Self:
        """Make a codec from codec.json and tables. Raise ConfigError, KeyError or ValueError where they are invalid."""
        options = read_settings(cls.options_type, settings, "settings", ignore_unknown=True)
        calibration = read_settings(cls.calibration_type, settings, "settings", ignore_unknown=True)
        codec = cls(options, calibration, tables, settings)
        codec.validate()
        return codec

    @classmethod
    @abstractmethod
    def calibrate(cls, options: Any, sample: CalibrationSample) -> Codec:
        """Fit a codec to a sample of views. Raise CodecError where the quality cannot be reached."""

    @abstractmethod
    def items(self) -> list[Item]:
        """List the arrays of a sample, in the order in which a shard stores them."""

    def size_limits(self, levels: LevelShapes) -> dict[str, tuple[int, int]]:
        """Return the least and the most bytes of each item for these grids. They are checked before decompression."""
        return {item.name: (0, most_bytes(levels, self.all_channels)) for item in self.items()}

    def working_bytes(self, sample: Sample, levels: LevelShapes) -> int:
        """Return about how many bytes the decoded tensors of a sample take, to choose how many to decode together."""
        return decoded_bytes(padded_positions(levels), self.all_channels)

    def specs(self, levels: Sequence[LevelShapes], samples: Sequence[Sample] = ()) -> list[ArraySpec]:
        """List the arrays of a shard of version 1. A ragged codec also needs the samples.

        Only the codecs that wrote caches of version 1 have this.
        """
        raise CodecError(f"codec {self.name}: cannot be stored in format version 1; make a new cache")

    @abstractmethod
    def encode(self, output: TeacherOutput) -> tuple[list[Sample], dict[str, float]]:
        """Encode a batch of equal shapes. Return the arrays of each sample, and the batch's mean errors by name."""

    @abstractmethod
    def decode(self, batch: EncodedBatch) -> TeacherOutput:
        """Decode a batch on its device. All samples share the largest grid, with frs = 0 outside their own grids."""

    @abstractmethod
    def check_sample(self, sample: Sample, levels: LevelShapes) -> None:
        """Raise CorruptCache where `encode` never makes such arrays for these grids. Runs on the host, before `decode`.

        Each array has the sample's own length, without padding.
        """

    def read_sample(self, sample: Sample, levels: LevelShapes) -> Sample:
        """Check the stored arrays of a sample, and return those that `decode` reads. Runs on the host.

        Raise CorruptCache as `check_sample` does.
        """
        self.check_sample(sample, levels)
        return sample

    def require_affordable(self, levels: Sequence[LevelShapes]) -> None:
        """Raise ValueError where views of these grids are too large to be decoded together."""
        require_plausible_batch(levels, self.all_channels)

    @abstractmethod
    def compare(self, exact: TeacherOutput, stored: EncodedBatch) -> dict[str, float]:
        """Compare stored samples with the teacher's output. Return a ratio for each of 'features', 'scores', 'frs' and
        'boxes' that is stored.

        Each ratio is the largest error divided by the allowed error, at most 1 on the machine that made the cache.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """Options and calibration as written to codec.json and to every shard."""
        return dict(self.stored) if self.stored is not None else {**self.options.to_json(), **to_json(self.calibration)}

    @property
    def channels(self) -> int:
        """C, of the widest level."""
        return self.calibration.channels

    def widths(self, levels: int) -> tuple[int, ...]:
        """Return C of each of `levels` levels."""
        return tuple(self.calibration.level_channels or [self.channels] * levels)

    def fp16_bytes(self, levels: LevelShapes) -> int:
        """Return the bytes of a sample's tensors as fp16, with one byte a position for the map."""
        others = self.score_channels + self.box_channels
        return sum(h * w * (2 * (width + others) + 1) for (h, w), width in zip(levels, self.widths(len(levels))))

    @property
    def score_channels(self) -> int:
        """K; 0 if the cache has no class scores."""
        return self.calibration.score_channels

    @property
    def box_channels(self) -> int:
        """4 N of box distributions with N bins a side; 0 if the cache has none."""
        return self.calibration.box_channels or 0

    @property
    def all_channels(self) -> tuple[int, int, int]:
        """The channels of features, class scores and boxes."""
        return self.channels, self.score_channels, self.box_channels

    @property
    def kinds(self) -> tuple[str, ...]:
        """The stored tensors, apart from the map: 'feature', and 'score' unless `scores=False`."""
        return self.options.kinds

    @property
    def allowed_error(self) -> float:
        """The allowed gradient error of each loss; 0 for an exact codec."""
        return 0.0

    def gradient_error(self, loss: str) -> float | None:
        """Return the gradient error of a loss (`Loss.name`) on the probe; None if it was not measured."""
        return 0.0

    def serves(self, loss: Loss) -> bool:
        """Return whether calibration limited the gradient error of this loss to `allowed_error`."""
        return True

    def coarser(self, factor: float) -> Codec | None:
        """Return this codec with its quantiser steps multiplied by `factor`; None for a codec without steps."""
        return None

    def block_tokens(self, what: str, sample: Sample, levels: LevelShapes) -> BlockTokens | None:
        """Return the tokens of a tensor with their level and richness; None for a codec without tokens."""
        return None

    def validate(self) -> None:
        """Raise KeyError or ValueError where calibration and tables do not fit together."""
        if (self.score_channels > 0) != ("score" in self.kinds):
            raise ValueError(
                f"settings.score_channels: {self.score_channels} does not fit the stored tensors {self.kinds}"
            )
        if self.options.boxes != (self.box_channels > 0):
            raise ValueError(f"settings.box_channels: {self.box_channels} does not fit boxes={self.options.boxes}")
        widths = self.calibration.level_channels
        read_channels({"channels": self.channels, "score_channels": self.score_channels})
        if widths is not None and max(widths) != self.channels:
            raise ValueError(f"settings.level_channels: {widths} does not fit channels {self.channels}")

    def check(self, output: TeacherOutput) -> None:
        """Raise CodecError where this codec cannot store a batch."""
        check_output(output, (self.channels, self.score_channels), self.calibration.level_channels)
        found = output.boxes[0].shape[1] if output.boxes else 0
        if self.box_channels and found != self.box_channels:
            raise CodecError(f"teacher output: expected {self.box_channels} box channels, found {found}")


def channels_of(output: TeacherOutput, kinds: Sequence[str]) -> tuple[int, int]:
    """Return (C, K) of an output: C of its widest level; K is 0 without class scores."""
    return max(f.shape[1] for f in output.features), output.scores[0].shape[1] if "score" in kinds else 0


def level_channels_of(output: TeacherOutput) -> list[int] | None:
    """Return C of every level; None if they are equal."""
    widths = [int(f.shape[1]) for f in output.features]
    return widths if len(set(widths)) > 1 else None


def check_output(output: TeacherOutput, channels: tuple[int, int], widths: list[int] | None = None) -> None:
    """Raise CodecError for (C, K) or level widths other than calibrated, NaN, infinity, and scores outside [0, 1]."""
    found = channels_of(output, ("feature", "score") if channels[1] else ("feature",))
    if found != channels or level_channels_of(output) != widths:
        raise CodecError(
            f"teacher output: expected (C, K) = {channels} and levels {widths or 'of one width'}, found {found} and "
            f"{level_channels_of(output) or 'levels of one width'}"
        )
    unsound = output.unsound()
    if unsound is not None:
        raise CodecError(f"level {unsound[1]}: NaN or infinity in the teacher's output", sample=unsound[0])
    for level, (least, most) in enumerate(extremes(output.scores).tolist() if output.scores else ()):
        if least < 0 or most > 1:
            raise CodecError(f"level {level}: scores outside [0, 1]; are they sigmoid probabilities?")
