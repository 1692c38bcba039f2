"""Options and calibration results of the frs codec. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipeline.codecs.settings import CodecOptions, check_widths

# The feature step of a profile is chosen for the losses whose `Loss.profiles` contains it.
PROFILES = ("frs", "universal")
QUALITIES = {"high": 0.01, "balanced": 0.03, "small": 0.10}
LOWEST, HIGHEST = 0.005, 1.0  # range of gradient errors that can be requested


def check_quality(value: Any) -> str | None:
    """Return the expected values if a quality is neither a known name nor an error in range."""
    if value in QUALITIES if isinstance(value, str) else LOWEST <= value <= HIGHEST:
        return None
    return f"the allowed gradient error of each loss, from {LOWEST} to {HIGHEST}, or one of {QUALITIES}"


@dataclass(frozen=True)
class FrsOptions(CodecOptions):
    """`quality`: the allowed gradient error of each loss, a name or a fraction. `profile`: the losses to serve.

    The default level 8 on Blosc's scale is zstd's level 15. It saves 8% compared with 5 (zstd's 9), and takes at most
    20 ms for a view, because tokens are few.
    """

    type: ClassVar[str] = "frs"
    fitted: ClassVar[bool] = True

    zstd_level: int = field(default=8, metadata={"at_least": 1, "at_most": 9, "key": "zstd"})
    quality: str | float = field(default="balanced", metadata={"check": check_quality})
    profile: str = field(default="frs", metadata={"choices": PROFILES})

    @property
    def allowed_error(self) -> float:
        """The allowed gradient error of each loss, as a fraction."""
        return QUALITIES[self.quality] if isinstance(self.quality, str) else self.quality


@dataclass(frozen=True)
class FrsCalibration:
    """Results of `fit`: largest code of the map, channels, quantiser steps, directions kept, and measured errors.

    Without class scores, their step and rank are None. `box_channels`, `box_step` and `box_error` are those of box
    distributions (boxes.py); None without them. `probe_error`: gradient error on the probe, by `Loss.name`.
    `probe_unexplained`: share of the teacher's variance that the student leaves unexplained for whom it is stated, by
    tensor. `near_error` and `near_unexplained`: both for a student twice as near. The oldest caches lack all three.
    `level_channels`: of every level; None if they are equal.
    """

    map_top: int = field(metadata={"at_least": 1, "at_most": 255})
    channels: int = field(metadata={"at_least": 1})
    score_channels: int = field(metadata={"at_least": 0})
    feature_step: float = field(metadata={"above": 0})
    score_step: float | None = field(default=None, metadata={"above": 0})
    feature_rank: int | None = field(default=None, metadata={"at_least": 1})
    score_rank: int | None = field(default=None, metadata={"at_least": 1})
    probe_error: dict[str, float] = field(default_factory=dict)
    probe_unexplained: dict[str, float] | None = None
    near_error: dict[str, float] | None = None
    near_unexplained: dict[str, float] | None = None
    level_channels: list | None = field(default=None, metadata={"check": check_widths})
    box_channels: int | None = field(default=None, metadata={"at_least": 4})
    box_step: float | None = field(default=None, metadata={"above": 0})
    box_error: float | None = None

    def step(self, what: str) -> float:
        """Return the quantiser step of 'feature', 'score' or 'box'. Raise ValueError where the cache has none."""
        value = {"feature": self.feature_step, "score": self.score_step, "box": self.box_step}[what]
        if value is None:
            raise ValueError(f"settings.{what}_step: missing")
        return value
