"""Windows of the learning views, on which the network that predicts the scores is trained.

The inputs are features decoded with the final step, because a decoder has no others.

Shapes: K score channels, (h, w) a window, with MARGIN positions around it for the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs2.inputs import log_map
from pipeline.codecs.frs2.kept import SEED, TINY, KeptView, Place, draw_place, is_held
from pipeline.codecs.frs2.predict_scores import whiten

MARGIN = 2
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
            parts = (whiten(table, x)[0].half(), logs, near, inside, roots, share, place.cut(maps.buckets[level][0]))
            target = self.held if is_held(number) else self.learning
            target[level].append(Window(*(part.clone().cpu() for part in parts)))

    def batch(self, level: int, size: int, device: torch.device) -> list[Tensor]:
        """Draw parts of `size` windows of a level, TRAINED positions wide and high.

        Return the fields of Window without the buckets, stacked, with zeros beyond smaller ones. The shares of each
        part add up to 1, unless all are 0.
        """
        rows = self.learning[level]
        drawn = torch.randint(len(rows), (size,), generator=self._generator).tolist()
        parts = [self._part(rows[number]) for number in drawn]
        return [_stack(field).to(device).float() for field in zip(*parts)]

    def _part(self, window: Window) -> list[Tensor]:
        """Draw a part of a window."""
        place = draw_place(window.share, TRAINED, self._generator)
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
    return torch.stack([F.pad(p, (0, width - p.shape[-1], 0, height - p.shape[-2])) for p in parts])
