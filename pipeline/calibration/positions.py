"""Positions of a view, sampled by the richness map, and the teacher's tensors at these positions.

The search for a probe's noise compares with the same outputs of the teacher in every round. Whole outputs with 720
score channels take 90 MB a view at 800x1333, sampled ones at most 20 MB, so they are computed once and kept.

Shape legend: C channels, K score channels, N positions sampled on a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.losses.frs import TINY
from pipeline.records import TeacherOutput

POSITIONS = 1024  # sampled on a level of a view; P2 at 800x1333 has 67,000


@dataclass(frozen=True)
class Sampled:
    """One view's output at sampled positions. places[l]: (N,) indices into the flattened level.

    `output` has features (1, C, 1, N), scores (1, K, 1, N), and as its map the weights (1, 1, N), which sum to 1.
    """

    places: list[Tensor]
    output: TeacherOutput

    def gather(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return (1, X, 1, N) of tensors (1, X, H_l, W_l)."""
        return [_gather(x, places) for x, places in zip(tensors, self.places)]


def sample_output(exact: TeacherOutput, scores: bool = True) -> Sampled:
    """Sample the output of one view. scores: whether to keep the class scores too."""
    places, weights = zip(*(sample_positions(m.flatten()) for m in exact.frs))
    found = Sampled(list(places), TeacherOutput([], [], [w[None, None] for w in weights]))
    found.output.features.extend(found.gather(exact.features))
    found.output.scores.extend(found.gather(exact.scores) if scores else [])
    return found


def sample_positions(m: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices (N,) into a level's map (H W,), and their weights, which sum to 1.

    A large level is sampled systematically, without random numbers. The map's sum is divided into POSITIONS equal
    parts, and one position is taken from each part. A position with a large value is taken several times.
    """
    share = m / m.sum().clamp_min(TINY)
    if len(m) <= POSITIONS:
        return torch.arange(len(m), device=m.device), share
    steps = (torch.arange(POSITIONS, device=m.device, dtype=torch.float64) + 0.5) / POSITIONS
    reached = share.double().cumsum(0)
    places = torch.searchsorted(reached, steps * reached[-1]).clamp_max(len(m) - 1)
    return places, (share.sum() / POSITIONS).expand(POSITIONS)


def _gather(x: Tensor, places: Tensor) -> Tensor:
    return x[0].flatten(1)[:, places][None, :, None]
