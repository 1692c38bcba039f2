"""Windows of the learning views, on which the network that predicts the scores is trained.

The inputs are features decoded with the final step, because a decoder has no others.

Shapes: K score channels, (h, w) a window, with MARGIN positions around it for the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs2.inputs import log_map
from pipeline.codecs.frs2.kept import SEED, TINY, KeptView, Place, is_held, place_around
from pipeline.codecs.frs2.predict_scores import MARGIN, whiten

TRAINED = 8  # positions of a step of the training, in each direction


@dataclass(frozen=True)
class Window:
    """One window of a level.

    x (32, h + 4, w + 4), log_map, m and inside (h + 4, w + 4): inputs of the network, zero outside the grid. roots:
    sqrt(t) (K, h, w). share: m / S_l (h, w), the position's weight in the loss. bucket: of m (h, w).
    """

    x: Tensor
    log_map: Tensor
    m: Tensor
    inside: Tensor
    roots: Tensor
    share: Tensor
    bucket: Tensor

    @cached_property
    def reached(self) -> np.ndarray:
        """Cumulative sums of the share (h w,) in float64."""
        return (self.share.flatten().double() + TINY).cumsum(0).numpy()

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.log_map, self.m, self.inside


class Windows:
    """The windows of each level, on the host, mostly as float16. Draws parts of them with a seeded generator.

    The views that are held back say what the network leaves of new views: its basis and its sizes.
    """

    def __init__(self, levels: int) -> None:
        self.learning: list[list[Window]] = [[] for _ in range(levels)]
        self.held: list[list[Window]] = [[] for _ in range(levels)]
        self._generator = torch.Generator().manual_seed(SEED)

    def add(
        self, number: int, view: KeptView, maps: BatchMaps, features: list[Tensor], table: Callable[[str], Tensor]
    ) -> None:
        """Add the windows of a view. features: decoded, the finest level's in `regions[0]`. table: of the inputs."""
        for level, roots in enumerate(view.roots or ()):
            place, m = view.places[level], maps.floats[level][0]
            around = place.padded(MARGIN)
            x = features[level] if level else embed(features[0], view.regions[0], m.shape)
            x, logs, near, inside = (
                around.cut(F.pad(part, (MARGIN,) * 4)) for part in (x, log_map(m), m, torch.ones_like(m))
            )
            share = place.cut(m) / m.sum().clamp_min(TINY)
            parts = (
                whiten(table, x[0].float().movedim(0, -1)).movedim(-1, 0).half(),
                logs,
                near,
                inside,
                roots,
                share,
                place.cut(maps.buckets[level][0]),
            )
            target = self.held if is_held(number) else self.learning
            target[level].append(Window(*(part.clone().cpu() for part in parts)))

    def batch(self, size: int, device: torch.device) -> list[Tensor]:
        """Draw parts of `size` windows of each level, TRAINED positions wide and high.

        Return the level of each part, and the fields of Window without the buckets, stacked, with zeros beyond smaller
        ones. The shares of each part add up to 1, unless all are 0.
        """
        levels = torch.arange(len(self.learning)).repeat_interleave(size)
        drawn = torch.rand((len(levels), 2), generator=self._generator, dtype=torch.float64).tolist()
        rows = (self.learning[level] for level in levels.tolist())
        parts = [_part(own[int(first * len(own))], second) for own, (first, second) in zip(rows, drawn)]
        return [levels.to(device), *(_stack(field).to(device) for field in zip(*parts))]


def _part(window: Window, drawn: float) -> list[Tensor]:
    """Return the part of a window around a position with the share's probability. drawn: from 0 to 1."""
    centre = int(np.searchsorted(window.reached, drawn * window.reached[-1], side="right"))
    place = place_around(min(centre, len(window.reached) - 1), window.share.shape, TRAINED)
    around, share = place.padded(MARGIN), place.cut(window.share)
    inner = (place.cut(window.roots), share / share.sum().clamp_min(TINY))
    return [*(around.cut(part) for part in window.inputs), *inner]


def embed(x: Tensor, place: Place, size: Sequence[int]) -> Tensor:
    """Return (B, C, *size) with x at a place, and zeros elsewhere."""
    full = x.new_zeros((*x.shape[:2], *size))
    full[..., place.rows, place.columns] = x
    return full


def _stack(parts: Sequence[Tensor]) -> Tensor:
    height, width = (max(part.shape[axis] for part in parts) for axis in (-2, -1))
    found = torch.zeros((len(parts), *parts[0].shape[:-2], height, width))
    for row, part in zip(found, parts):
        row[..., : part.shape[-2], : part.shape[-1]] = part
    return found
