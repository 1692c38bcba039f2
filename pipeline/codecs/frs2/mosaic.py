"""All levels of a batch side by side on one plane, so that one convolution sees them all.

The finest level is on the left, and the others are below each other on its right. A border, and gaps between the
levels, are empty: a convolution of 3x3 positions sees zeros there, as beyond the border of a grid.

Shapes: B batch, L levels, P positions of the canvas, M cells of the plane.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs.canvas import Canvas

# torch computes the convolution of one image by another algorithm where it has no more numbers, and a sample alone
# would then differ in its last digits from the same sample in a batch.
FEWEST_NUMBERS = 20481


class Mosaic:
    """Places the positions of a canvas on a plane (height, width). channels: fewest of a tensor that is convolved."""

    def __init__(self, canvas: Canvas, channels: int) -> None:
        self._canvas, ((height, width), *others) = canvas, canvas.padded
        self._right = width + 1  # column of the other levels, without the border
        self.width = 1 + width + max((1 + w for _, w in others), default=0)
        # Two rows below: the neighbour after the last position of the last row is in the second one.
        rows = 3 + max(height, sum(1 + h for h, _ in others) - 1)
        self.height = max(rows, -(-FEWEST_NUMBERS // (channels * self.width)))

    @cached_property
    def cell(self) -> Tensor:
        """Cell of each position, (P,) int64."""
        level, y, x, *_ = self._canvas.positions
        heights = self._canvas.position_sides[:, 0] + 1
        heights[:1].zero_()  # the others begin at the top, too
        corner = (heights.cumsum(0) - heights).add_(1).mul_(self.width).add_(1)
        corner[1:].add_(self._right)
        return torch.add(x, y, alpha=self.width).add_(corner[level])

    @cached_property
    def position(self) -> Tensor:
        """Position in each cell, (M,) int64; P for an empty cell."""
        positions = self._canvas.numbers(len(self.cell))
        cells = positions.new_full((self.height * self.width,), len(positions))
        return cells.scatter_(0, self.cell, positions)

    @cached_property
    def neighbours(self) -> Tensor:
        """Positions around each position, row by row, (P, 9) int64; P where a cell is empty."""
        steps = self._canvas.numbers(3) - 1
        return self.position[self.cell[:, None] + torch.add(steps, steps[:, None], alpha=self.width).flatten()]

    @cached_property
    def inside(self) -> Tensor:
        """Whether a cell is in the sample's own grid, (B, M) bool."""
        return F.pad(self._canvas.inside, (0, 1))[:, self.position]

    def spread(self, packed: Tensor) -> Tensor:
        """Return (B, P, X) as (B, X, height, width), with zeros outside each sample's own grid, channels last."""
        cells = packed.index_select(1, self.nearest).mul_(self.inside[..., None])
        return cells.unflatten(1, (self.height, self.width)).movedim(-1, 1)

    def gather(self, plane: Tensor) -> Tensor:
        """Return (B, X, height, width) as (B, P, X)."""
        return plane.movedim(1, -1).flatten(1, 2).index_select(1, self.cell)

    @cached_property
    def nearest(self) -> Tensor:
        """Position in each cell, (M,) int64; any for an empty cell."""
        return self.position.clamp_max(len(self.cell) - 1)

    def plane(self, cells: Tensor) -> Tensor:
        """Return (..., M, X) as (..., X, height, width)."""
        return cells.unflatten(-2, (self.height, self.width)).movedim(-1, -3)
