"""The positions and blocks of a batch, all levels on one axis.

The canvas of a level contains the grids of all samples, padded to whole 4x4 blocks. Positions are numbered level by
level and row by row, and so are blocks. All levels share one axis, so the number of operations does not depend on it.

Shapes: B batch, L levels, P positions and N blocks of all levels, (H_l, W_l) a level's canvas before padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.codecs.frs.transform import BLOCK, to_blocks
from pipeline.records import LevelShapes, canvas


class Cells(NamedTuple):
    """Level, row and column of cells, (N,) int64 each.

    own: the sides of each sample's grid of a level, (B, N, 2). inside: whether the cell is in it, (B, N) bool.
    """

    level: Tensor
    y: Tensor
    x: Tensor
    own: Tensor
    inside: Tensor


class Canvas:
    """Geometry of a batch. own: the samples' grids; sides: the same as (B, L, 2) int64 on the device.

    blocks, block_sides: rows and columns of the blocks of every level, on the host and as (L, 2) on the device.
    position_sides: those of the positions in whole blocks.
    """

    def __init__(self, own: tuple[LevelShapes, ...], sides: Tensor) -> None:
        self.own, self.sides, self.sizes = own, sides, canvas(own)
        self.blocks = [(-(-h // BLOCK), -(-w // BLOCK)) for h, w in self.sizes]
        self._own_blocks = torch.div(sides + BLOCK - 1, BLOCK, rounding_mode="floor")
        self.block_sides = self._own_blocks.amax(dim=0)
        self.position_sides = self.block_sides * BLOCK

    @property
    def padded(self) -> list[tuple[int, int]]:
        """Height and width of every level in whole blocks."""
        return [(h * BLOCK, w * BLOCK) for h, w in self.blocks]

    @cached_property
    def _numbers(self) -> Tensor:
        frequencies, tensors = BLOCK**2, 2
        count = tensors * len(self.own) * frequencies * sum(h * w for h, w in self.blocks)
        return torch.arange(count, device=self.sides.device)

    def numbers(self, count: int) -> Tensor:
        """Return (count,) int64: 0, 1, 2, ... The most are the frequencies of all blocks of two tensors."""
        return self._numbers[:count]

    @cached_property
    def _cells(self) -> list[Cells]:
        """Return the cells of the positions, of squares of 2 x 2 positions and of the blocks."""
        count = sum(h * w for h, w in self.blocks)
        counts = [BLOCK**2 * count, 4 * count, count]
        grids = torch.cat([self.position_sides, self.block_sides * 2, self.block_sides])
        level, y, x = coordinates(grids, self.numbers(sum(counts)))
        own = torch.cat([self.sides, self.sides.roll(-1, 1), self._own_blocks], dim=1)[:, level]
        parts = (level % len(self.sizes), y, x, own, (y < own[..., 0]) & (x < own[..., 1]))
        fields = [part.split(counts, 0 if part.dim() == 1 else 1) for part in parts]
        return [Cells(*cells) for cells in zip(*fields)]

    @property
    def positions(self) -> Cells:
        """The positions, with the samples' own grids."""
        return self._cells[0]

    @property
    def squares(self) -> Cells:
        """Squares of 2 x 2 positions, in the positions' order, with the samples' own grids of the next level."""
        return self._cells[1]

    @property
    def level(self) -> Tensor:
        """Level of each position, (P,) int64."""
        return self._cells[0].level

    @property
    def block_level(self) -> Tensor:
        """Level of each block, (N,) int64."""
        return self._cells[2].level

    @property
    def inside(self) -> Tensor:
        """Whether a position is in the sample's own grid, (B, P) bool."""
        return self._cells[0].inside

    @property
    def block_inside(self) -> Tensor:
        """Whether a block has a position of the sample's own grid, (B, N) bool."""
        return self._cells[2].inside

    def read(self, rows: Tensor) -> Tensor:
        """Place rows (B, >= positions), each sample's own grids one after another, on grids of one size.

        Return (B, L, H, W), with any numbers beyond each sample's own grids. H and W: the largest of all levels.
        """
        y, x = map(self.numbers, self._largest)
        areas = self.sides.prod(dim=2)
        starts = areas.cumsum(1) - areas
        at = torch.addcmul(starts[..., None, None] + x, y[:, None], self.sides[..., 1, None, None])
        return rows.gather(1, at.clamp_max(rows.shape[1] - 1).flatten(1)).view_as(at)

    def pack_grids(self, grids: Tensor) -> Tensor:
        """Pack (B, L, H, W) of the size that `read` returns into (B, P), with zeros outside each sample's own grid."""
        (level, y, x, *_), (height, width) = self.positions, self._largest
        at = torch.add(torch.add(x, y, alpha=width), level, alpha=height * width)
        return grids.flatten(1).index_select(1, at) * self.inside

    @property
    def _largest(self) -> tuple[int, int]:
        height, width = (max(sides) for sides in zip(*self.padded))
        return height, width

    def pack(self, levels: Sequence[Tensor]) -> Tensor:
        """Pack [(B, H_l, W_l)] into (B, P), with zeros in the padding."""
        return torch.cat([to_blocks(level).flatten(1) for level in levels], dim=1)

    def pack_channels(self, levels: Sequence[Tensor]) -> Tensor:
        """Pack [(B, X, H_l, W_l)] into (B, P, X), with zeros in the padding."""
        return torch.cat([to_blocks(level).movedim(1, -1).flatten(1, 2) for level in levels], dim=1)

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

    def level_sums(self, blocks: Tensor) -> Tensor:
        """Return the sums (B, L) of (B, N) over every level's blocks."""
        return blocks.new_zeros((len(blocks), len(self.sizes))).index_add_(1, self.block_level, blocks)


def coordinates(sides: Tensor, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return level, row and column (N,) int64 of cells of grids (L, 2), numbered one grid after another."""
    areas = sides.prod(dim=1)
    ends = areas.cumsum(0)
    level = torch.searchsorted(ends, number, right=True)
    cell, width = number - (ends - areas)[level], sides[level, 1]
    y = torch.div(cell, width, rounding_mode="floor")
    return level, y, cell - y * width
