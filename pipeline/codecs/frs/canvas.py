"""The positions and blocks of a batch, all levels on one axis.

The canvas of a level contains the grids of all samples, padded to whole 4x4 blocks. Positions are numbered level by
level and row by row, and so are blocks. All levels share one axis, so the number of operations does not depend on it.

Shapes: B batch, L levels, P positions and N blocks of all levels, (H_l, W_l) a level's canvas before padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from pipeline.codecs.frs.transform import BLOCK, to_blocks
from pipeline.records import LevelShapes, canvas


class Canvas:
    """Geometry of a batch. own: the samples' grids; sides: the same as (B, L, 2) int64 on the device."""

    def __init__(self, own: tuple[LevelShapes, ...], sides: Tensor) -> None:
        self.own, self.sides, self.sizes = own, sides, canvas(own)
        self.blocks = [(-(-h // BLOCK), -(-w // BLOCK)) for h, w in self.sizes]
        self._block_sides = -torch.div(-sides.amax(dim=0), BLOCK, rounding_mode="floor")

    @property
    def padded(self) -> list[tuple[int, int]]:
        """Height and width of every level in whole blocks."""
        return [(h * BLOCK, w * BLOCK) for h, w in self.blocks]

    @cached_property
    def _place(self) -> tuple[Tensor, Tensor, Tensor]:
        return coordinates(self._block_sides * BLOCK, sum(h * w for h, w in self.padded))

    @property
    def level(self) -> Tensor:
        """Level of each position, (P,) int64."""
        return self._place[0]

    @cached_property
    def inside(self) -> Tensor:
        """Whether a position is in the sample's own grid, (B, P) bool."""
        level, y, x = self._place
        own = self.sides[:, level]
        return (y < own[..., 0]) & (x < own[..., 1])

    @cached_property
    def _block_place(self) -> tuple[Tensor, Tensor, Tensor]:
        return coordinates(self._block_sides, sum(h * w for h, w in self.blocks))

    @property
    def block_level(self) -> Tensor:
        """Level of each block, (N,) int64."""
        return self._block_place[0]

    @cached_property
    def block_inside(self) -> Tensor:
        """Whether a block has a position of the sample's own grid, (B, N) bool."""
        level, y, x = self._block_place
        own = self.sides[:, level]
        return (y * BLOCK < own[..., 0]) & (x * BLOCK < own[..., 1])

    def read(self, rows: Tensor) -> Tensor:
        """Place rows (B, >= positions), each sample's own grids one after another, on the canvas: (B, P)."""
        level, y, x = self._place
        areas = self.sides.prod(dim=2)
        starts = areas.cumsum(1) - areas
        at = starts[:, level] + y * self.sides[:, level, 1] + x
        return rows.gather(1, at * self.inside) * self.inside

    def pack(self, levels: Sequence[Tensor]) -> Tensor:
        """Pack [(B, H_l, W_l)] into (B, P), with zeros in the padding."""
        return torch.cat([to_blocks(level).flatten(1) for level in levels], dim=1)

    def split(self, packed: Tensor) -> list[Tensor]:
        """Return (B, P, ...) as [(B, H_l, W_l, ...)], as views."""
        return [plane[:, :h, :w] for plane, (h, w) in zip(self.planes(packed), self.sizes)]

    def split_channels(self, packed: Tensor) -> list[Tensor]:
        """Return (B, P, X) as [(B, X, H_l, W_l)], as views."""
        return [level.movedim(-1, 1) for level in self.split(packed)]

    def planes(self, packed: Tensor) -> list[Tensor]:
        """Return (B, P, ...) as [(B, H4, W4, ...)], with the padding, as views."""
        parts = packed.split([h * w for h, w in self.padded], dim=1)
        return [part.unflatten(1, size) for part, size in zip(parts, self.padded)]

    def by_block(self, packed: Tensor) -> list[Tensor]:
        """Return (B, P, ...) as [(B, rows of blocks, 4, columns of blocks, 4, ...)], as views."""
        return [self.in_blocks(plane) for plane in self.planes(packed)]

    @staticmethod
    def in_blocks(plane: Tensor) -> Tensor:
        """Return a level (B, H4, W4, ...) as (B, rows of blocks, 4, columns of blocks, 4, ...), as a view."""
        return plane.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK))

    def split_blocks(self, blocks: Tensor) -> list[Tensor]:
        """Return (B, N, 16, ...) as `by_block` does."""
        parts = blocks.unflatten(2, (BLOCK, BLOCK)).split([h * w for h, w in self.blocks], dim=1)
        return [part.unflatten(1, size).transpose(2, 3) for part, size in zip(parts, self.blocks)]

    def block_sums(self, packed: Tensor) -> Tensor:
        """Return the sums (B, N) of (B, P) over every block."""
        return torch.cat([blocks.sum(dim=(2, 4)).flatten(1) for blocks in self.by_block(packed)], dim=1)


def coordinates(sides: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return level, row and column, each (total,) int64, of the cells of grids (L, 2), one grid after another."""
    areas = sides.prod(dim=1)
    ends = areas.cumsum(0)
    number = torch.arange(total, device=sides.device)
    level = torch.searchsorted(ends, number, right=True)
    cell, width = number - (ends - areas)[level], sides[level, 1]
    y = torch.div(cell, width, rounding_mode="floor")
    return level, y, cell - y * width
