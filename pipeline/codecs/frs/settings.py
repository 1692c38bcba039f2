"""Options of the frs codec, and what its calibration finds. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipeline.codecs.settings import CodecOptions

# A profile's feature step is chosen for the losses that name it in their `Loss.profiles`.
PROFILES = ("frs", "universal")
QUALITIES = {"high": 0.01, "balanced": 0.03, "small": 0.10}
LOWEST, HIGHEST = 0.005, 0.5  # gradient errors that may be requested


def check_quality(value: Any) -> str | None:
    """Return what was expected where a quality is neither a known name nor an error in range."""
    if value in QUALITIES if isinstance(value, str) else LOWEST <= value <= HIGHEST:
        return None
    return f"the gradient error allowed to each loss, from {LOWEST} to {HIGHEST}, or one of {QUALITIES}"


@dataclass(frozen=True)
class FrsOptions(CodecOptions):
    """`quality`: the gradient error allowed to each loss, a name or a fraction. `profile`: the losses to serve.

    The default zstd level, Blosc's 8, is zstd's 15: 8% smaller than 5 (zstd's 9), and tokens are so few that it costs
    20 ms a view at most.
    """

    type: ClassVar[str] = "frs"

    zstd_level: int = field(default=8, metadata={"at_least": 1, "at_most": 9, "key": "zstd"})
    quality: str | float = field(default="balanced", metadata={"check": check_quality})
    profile: str = field(default="frs", metadata={"choices": PROFILES})

    @property
    def allowed_error(self) -> float:
        """The gradient error allowed to each loss, as a fraction."""
        return QUALITIES[self.quality] if isinstance(self.quality, str) else self.quality


@dataclass(frozen=True)
class FrsCalibration:
    """What `fit` found: largest code of the map, channels, quantiser steps, planes kept, and measured errors.

    `probe_error`: gradient error on the probe by `Loss.name`. Steps and ranks of scores are None without class scores.
    """

    map_top: int = field(metadata={"at_least": 1, "at_most": 255})
    channels: int = field(metadata={"at_least": 1})
    score_channels: int = field(metadata={"at_least": 0})
    feature_step: float = field(metadata={"above": 0})
    score_step: float | None = field(default=None, metadata={"above": 0})
    feature_rank: int | None = field(default=None, metadata={"at_least": 1})
    score_rank: int | None = field(default=None, metadata={"at_least": 1})
    probe_error: dict[str, float] = field(default_factory=dict)

    def step(self, what: str) -> float:
        """Return the quantiser step of 'feature' or 'score'. Raises ValueError where there are no class scores."""
        value = {"feature": self.feature_step, "score": self.score_step}[what]
        if value is None:
            raise ValueError(f"settings.{what}_step: missing")
        return value
