"""The FRS map, coded with one byte per position and one byte per level.

Both losses divide by the map's sum over a level, so the map is coded relative to its level. Each level has an exponent
s, the octave of its maximum, and m = 2^-s (c / top)^4 for codes c = 0..top. `top` depends on the requested quality.

A single absolute grid down to 2^-16 rounds levels without objects to zero. The gradient error of the features is then
23%. Relative to the level it is 0.2%, and 0.1% on this fourth-root grid (benchmarks/ablation.py). The fourth root gives
most codes to large values, but does not round wide weak areas to zero, as a linear or square-root grid does.

Encoder and decoder both use the decoded map for weights, buckets and level sums. The stored bytes are differences to
the neighbours above and left, which saves a quarter of the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from pipeline.codecs.frs.canvas import Canvas
from pipeline.codecs.frs.map_codes import difference, octaves, unrounded
from pipeline.codecs.frs.map_values import BUCKETS, UNIT, code_table, value_table
from pipeline.codecs.frs.order import BlockStrengths, log_class
from pipeline.codecs.frs.transform import Steps
from pipeline.codecs.packing import positions
from pipeline.errors import CorruptCache
from pipeline.records import LevelShapes


class BatchMaps:
    """The coded maps of a batch, on a common canvas with zeros outside each sample's own grid.

    canvas: geometry of the batch. codes: (B, P) uint8 at the canvas's positions. exponents: (B, L) uint8. top: the
    largest code. Decoding never copies a value to the host, because it would wait for the device
    (tests/codecs/test_device.py).
    """

    def __init__(self, canvas: Canvas, codes: Tensor, exponents: Tensor, top: int) -> None:
        self.canvas, self.codes, self.exponents, self.top = canvas, codes, exponents, top

    @classmethod
    def encode(cls, maps: Sequence[Tensor], top: int) -> BatchMaps:
        """Encode maps [(B, H_l, W_l)] in [0, 1] of samples that fill their grids."""
        exponents = octaves(torch.stack([m.amax(dim=(1, 2)) for m in maps], dim=1))
        own = (tuple((m.shape[1], m.shape[2]) for m in maps),) * len(maps[0])
        canvas = Canvas(own, torch.tensor(own, device=exponents.device))
        codes = [torch.round(code).to(torch.uint8) for code in unrounded(maps, exponents, top)]
        return cls(canvas, canvas.pack(codes), exponents, top)

    @classmethod
    def from_bytes(cls, rows: Tensor, own: tuple[LevelShapes, ...], sides: Tensor, top: int) -> BatchMaps:
        """Read the maps at the start of rows (B, >= L + P) uint8. Raise CorruptCache where the rows are too short."""
        depth = len(own[0])
        needed = depth + max(map(positions, own))
        if rows.shape[1] < needed:
            raise CorruptCache(f"map: expected {needed} bytes for grids {own}, found {rows.shape[1]}")
        canvas = Canvas(own, sides)
        differences = canvas.read(rows[:, depth:])
        codes = differences.cumsum(2, dtype=torch.uint8).cumsum(3, dtype=torch.uint8)  # modulo 256
        return cls(canvas, canvas.pack_grids(codes), rows[:, :depth], top)

    def to_bytes(self) -> Tensor:
        """Return (B, L + P) uint8 of samples that fill the canvas: the exponents, then the differences by level."""
        return torch.cat([self.exponents, *(difference(c).flatten(1) for c in self.canvas.split(self.codes))], dim=1)

    @cached_property
    def packed(self) -> Tensor:
        """m at the canvas's positions, (B, P) float32, from a table, so the bits are equal on every device."""
        return self.look_up(value_table(self.top, self.codes.device))

    @cached_property
    def packed_buckets(self) -> Tensor:
        """The half octave of m, (B, P) int64 in [0, BUCKETS)."""
        return self.look_up(code_table("bucket", self.top, self.codes.device))

    @cached_property
    def mean_number(self) -> Tensor:
        """Number of each position's mean among those of all levels and buckets, (B, P) int64."""
        return torch.add(self.packed_buckets, self.canvas.level, alpha=BUCKETS)

    @property
    def floats(self) -> list[Tensor]:
        """m as [(B, H_l, W_l)] float32."""
        return self.canvas.split(self.packed)

    @property
    def buckets(self) -> list[Tensor]:
        """The half octave of m as [(B, H_l, W_l)] int64."""
        return self.canvas.split(self.packed_buckets)

    @cached_property
    def sums(self) -> Tensor:
        """Sum of m over each level, (B, L) float32. It depends on the codes alone, and not on the canvas."""
        batch, levels = self.exponents.shape
        code = torch.add(self.codes, self.canvas.level, alpha=256)
        counts = code.new_zeros((batch, levels * 256)).scatter_add_(1, code, torch.ones_like(code))
        values = value_table(self.top, code.device)[self._octaves].double()
        return (counts.view_as(values) * values).sum(dim=2).float()

    @cached_property
    def steps(self) -> Steps:
        """The quantiser steps of every level."""
        return Steps(self.sums)

    @cached_property
    def inverse_root(self) -> Tensor:
        """`inverse_root` at the canvas's positions, (B, P)."""
        return self.look_up(code_table("inverse root", self.top, self.codes.device))

    @property
    def whole(self) -> Tensor:
        """m 2^s of each position, (B, P) int64 in units of 2^-30."""
        return code_table("integer", self.top, self.codes.device)[self.codes.long()]

    @cached_property
    def block_sums(self) -> Tensor:
        """Sum of m 2^s over each block, (B, N) int64 in units of 2^-30, equal on every device."""
        return self.canvas.block_sums(self.whole)

    @cached_property
    def level_sums(self) -> Tensor:
        """Sum of m 2^s over each level, (B, L) int64, as `block_sums`."""
        return self.canvas.level_sums(self.block_sums)

    @cached_property
    def strength(self) -> Tensor:
        """Log size of each block minus that of its level, (B, N) int64, from -110 to 0."""
        return self.strengths.down.neg()

    @cached_property
    def strengths(self) -> BlockStrengths:
        """The blocks by their strength."""
        return _strengths(self.canvas, self.block_sums, self.level_sums)

    @cached_property
    def uniform(self) -> BatchMaps:
        """Maps of the same grids with m = 1 at every position of a sample's own grid."""
        return UniformMaps(self.canvas, self.top)

    def look_up(self, table: Tensor) -> Tensor:
        """Return the entry (...) of each position in a table (256, 256, ...) by exponent and code, (B, P, ...)."""
        return table.flatten(0, 1)[self._index]

    @cached_property
    def _index(self) -> Tensor:
        return torch.add(self.codes, self._octaves[:, self.canvas.level], alpha=256)

    @cached_property
    def _octaves(self) -> Tensor:
        return self.exponents.long()


class UniformMaps(BatchMaps):
    """Maps with m = 1 at every position of a sample's own grid, for which few values must be computed."""

    def __init__(self, canvas: Canvas, top: int) -> None:
        self.canvas, self.top = canvas, top

    @cached_property
    def codes(self) -> Tensor:  # type: ignore[override]
        return self.canvas.inside.to(torch.uint8) * self.top

    @cached_property
    def exponents(self) -> Tensor:  # type: ignore[override]
        return torch.zeros_like(self._areas, dtype=torch.uint8)

    @cached_property
    def packed(self) -> Tensor:
        return self.canvas.inside.float()

    @property
    def inverse_root(self) -> Tensor:  # type: ignore[override]
        return self.packed

    @cached_property
    def sums(self) -> Tensor:
        return self._areas.float()

    @property
    def whole(self) -> Tensor:
        return self.canvas.inside * UNIT

    @cached_property
    def _areas(self) -> Tensor:
        return self.canvas.sides.prod(dim=2)


def strengths_of(maps: Sequence[BatchMaps]) -> list[BlockStrengths]:
    """Return `strengths` of several maps of one canvas, computed together."""
    if len(maps) == 1:
        return [maps[0].strengths]
    canvas, batch = maps[0].canvas, len(maps[0].canvas.own)
    sums = canvas.block_sums(torch.cat([one.whole for one in maps]))
    found = _strengths(canvas, sums, canvas.level_sums(sums))
    return [found.part(slice(first, first + batch)) for first in range(0, len(sums), batch)]


def _strengths(canvas: Canvas, block_sums: Tensor, level_sums: Tensor) -> BlockStrengths:
    down = log_class(level_sums)[:, canvas.block_level] - log_class(block_sums)
    return BlockStrengths(canvas.block_level, len(canvas.sizes), down, canvas.block_inside)
