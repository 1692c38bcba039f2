"""Windows of the learning views, on which the network that predicts the scores is trained.

A window is at most WINDOW positions wide and high, so memory and time do not grow with the size of a view. Its centre
is drawn with the map's probability. The inputs are features decoded with the final step, because a decoder has no
others.

Shapes: K score channels, (h, w) a window, with MARGIN positions around it for the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs.transform import BLOCK
from pipeline.codecs.frs2.inputs import log_map
from pipeline.codecs.frs2.predict_scores import whiten
from pipeline.records import TeacherOutput

WINDOW, MARGIN = 24, 2
VIEWS, HELD, MOST_HELD = 192, 4, 48  # views to train on; every fourth view is held back
SEED = 520
TINY = torch.finfo(torch.float32).tiny


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
    """The windows of each level, on the host, mostly as float16. Draws from them with a seeded generator.

    Every HELD-th view is held back: the basis and the sizes of what the network leaves are those of new views.
    """

    def __init__(self, levels: int) -> None:
        self.learning: list[list[Window]] = [[] for _ in range(levels)]
        self.held: list[list[Window]] = [[] for _ in range(levels)]
        self._views = 0
        self._generator = torch.Generator().manual_seed(SEED)

    def add(
        self, output: TeacherOutput, maps: BatchMaps, features: list[Tensor], table: Callable[[str], Tensor]
    ) -> None:
        """Add a window of each level of each sample. features: decoded. table: with the inputs' tables."""
        x = [whiten(table, y) for y in features]
        for b in range(len(output.frs[0])):
            target, most = (self.held, MOST_HELD) if self._views % HELD == HELD - 1 else (self.learning, VIEWS)
            self._views += 1
            if len(target[0]) >= most:
                continue
            for level, rows in enumerate(target):
                m, bucket = maps.floats[level][b], maps.buckets[level][b]
                rows.append(self._cut(x[level][b], m, bucket, output.scores[level][b]))

    def _cut(self, x: Tensor, m: Tensor, bucket: Tensor, scores: Tensor) -> Window:
        """Cut a window out of one sample of a level."""
        top, left, height, width = self._place(m.cpu())
        rows, columns = slice(top, top + height), slice(left, left + width)
        around = (..., slice(top, top + height + 2 * MARGIN), slice(left, left + width + 2 * MARGIN))
        x, logs, near, inside = (
            F.pad(part, (MARGIN,) * 4)[around].clone().cpu() for part in (x, log_map(m), m, torch.ones_like(m))
        )
        roots = scores[:, rows, columns].float().sqrt().half().cpu()
        share = m[rows, columns] / m.sum().clamp_min(TINY)
        return Window(x.half(), logs, near, inside, roots, share.cpu(), bucket[rows, columns].clone().cpu())

    def _place(self, m: Tensor) -> tuple[int, int, int, int]:
        """Draw the place (top, left, height, width) of a window in a map (H, W), in whole blocks of the DCT."""
        height, width = (min(WINDOW, side) for side in m.shape)
        weights = m.flatten().double() + TINY
        centre = int(torch.multinomial(weights / weights.sum(), 1, generator=self._generator))
        row, column = divmod(centre, m.shape[1])
        top = min(max(row - height // 2, 0), m.shape[0] - height)
        left = min(max(column - width // 2, 0), m.shape[1] - width)
        return top - top % BLOCK, left - left % BLOCK, height, width

    def batch(self, level: int, size: int, device: torch.device) -> list[Tensor]:
        """Draw `size` windows of a level. Return the fields of Window, stacked, with zeros beyond smaller ones."""
        rows = self.learning[level]
        drawn = torch.randint(len(rows), (size,), generator=self._generator).tolist()
        names = ("x", "log_map", "m", "inside", "roots", "share")
        return [_stack([getattr(rows[n], name) for n in drawn]).to(device).float() for name in names]


def _stack(parts: list[Tensor]) -> Tensor:
    height, width = (max(part.shape[axis] for part in parts) for axis in (-2, -1))
    return torch.stack([F.pad(p, (0, width - p.shape[-1], 0, height - p.shape[-2])) for p in parts])
