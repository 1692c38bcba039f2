"""Options of the frs2 codec. Its calibration has the fields of frs. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.codecs.frs.settings import FrsOptions


@dataclass(frozen=True)
class Frs2Options(FrsOptions):
    """Options of frs, and whether each prediction is fitted.

    `predict_levels`: the features of a level from the next coarser one. `predict_scores`: the scores from the features,
    with a network that calibration trains; without class scores there is none.
    """

    type: ClassVar[str] = "frs2"

    predict_levels: bool = True
    predict_scores: bool = True
