"""Find symbols by their rank, without sorting millions of keys.

The symbols of a sample are numbered by level, plane, frequency and block, and ranked by decreasing key. Symbols of
equal keys keep their order. The key is the sum of two whole numbers: the expected size e of a group (level, plane,
frequency), a constant of the codec, and the strength of a block, given by the decoded map. This module counts both down
from the largest, as e and v from 0, so that keys k = e + v increase. The number of symbols with key k in a group is the
number of its level's blocks with v = k - e. Sums of these numbers lead from a rank to its plane, a short scan to the
frequency, and a sort of the few blocks to the block. This is a counting sort that visits only the requested symbols,
about 1% of all.

Expected sizes are integers in steps of 2^(1/4), and strengths are computed from integers, because a rounding difference
between two devices would corrupt the sample.

Shapes: B batch, L levels, R planes, 16 frequencies of a 4x4 block, N blocks of all levels of the canvas, T ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs.transform import BLOCK

FREQUENCIES = BLOCK * BLOCK
STRENGTHS = 111  # log sizes of sums are 0 to 110; that of a block is at most that of its level
RANKED = 1 << 14  # symbols that a CPU ranks at once, so that it keeps their groups in its cache
BINS = STRENGTHS + 1  # one more for blocks outside the sample's grid
WIDEST = 512  # largest difference between two expected sizes; calibration writes at most 80
BOUNDS = np.array([round(2 ** (k / 2)) for k in range(STRENGTHS - 1)], np.int64)


def log_class(sums: Tensor) -> Tensor:
    """Return about 2 log2(sum) + 1 of int64 sums, and 0 for 0. The result is equal on every device."""
    return torch.searchsorted(_bounds(sums.device), sums, right=True)


@lru_cache(maxsize=16)
def _bounds(device: torch.device) -> Tensor:
    return torch.from_numpy(BOUNDS).to(device)


@dataclass(frozen=True)
class ExpectedSizes:
    """`{what}_expected` of a codec on a device.

    down: (L, R, 16) int64, e of each group. counts: (L, E, R) float64, the number of groups with e = E - 1, ..., 0.
    """

    down: Tensor
    counts: Tensor

    @classmethod
    def from_table(cls, table: np.ndarray, device: torch.device) -> ExpectedSizes:
        """Read an int16 table (L, R, 16)."""
        down = int(table.max()) - table.astype(np.int64)
        counts = np.zeros((len(down), int(down.max()) + 1, down.shape[1]))
        level, plane, _ = np.indices(down.shape)
        np.add.at(counts, (level, counts.shape[1] - 1 - down, plane), 1)
        return cls(torch.from_numpy(down).to(device), torch.from_numpy(counts).to(device))


class Symbols(NamedTuple):
    """Symbols of a batch, each (B, T) int64: plane 0 to R-1, frequency 0 to 15, block 0 to N-1 of the canvas."""

    plane: Tensor
    frequency: Tensor
    block: Tensor


class BlockStrengths:
    """The blocks of a batch by level and strength.

    level: (N,) int64, of each block. strength: (B, N) int64, log size of each block minus that of its level, -110 to 0.
    inside: (B, N) bool, whether a block is in the sample's own grid.
    """

    def __init__(self, level: Tensor, levels: int, strength: Tensor, inside: Tensor) -> None:
        self.level, self.down = level, strength.neg()
        # Those outside the sample's grid follow the others of their level.
        self.bins = level * BINS + torch.where(inside, self.down, STRENGTHS)
        self.blocks = torch.argsort(self.bins, dim=1, stable=True)
        held = self.bins.new_zeros((len(strength), levels * BINS))
        held.scatter_add_(1, self.bins, torch.ones_like(self.bins))
        self.start = held.cumsum(1) - held
        self.held = held.view(len(strength), levels, BINS)[..., :STRENGTHS]
        if held.device.type == "cpu":  # a GPU is not asked for the weakest block, because that would wait for it
            self.held = self.held[..., : np.flatnonzero(self.held.numpy().any(axis=(0, 1))).max(initial=0) + 1]

    @cached_property
    def place(self) -> Tensor:
        """The place of each block among those of its level and strength, (B, N) int64."""
        numbers = torch.arange(len(self.level), device=self.level.device).expand_as(self.blocks)
        place = torch.empty_like(self.blocks).scatter_(1, self.blocks, numbers)
        return place - self.start.gather(1, self.bins)


class SymbolOrder:
    """The ranks of a batch's symbols. expected: sizes of the groups. strengths: of the blocks."""

    def __init__(self, expected: ExpectedSizes, strengths: BlockStrengths) -> None:
        self._down, self._strengths = expected.down, strengths
        self._levels, widest, self._planes = expected.counts.shape
        # Blocks with v at index v + E - 1, so that v = k - e is never outside.
        self._edge = widest - 1
        self._held = F.pad(strengths.held, (self._edge, self._edge)).int()
        self._wide = self._held.shape[2]
        # Symbols of key k in plane (l, r): sum over e of counts[l, e, r] held[l, k - e]. Sums are exact in float64.
        windows = self._held.double().unfold(2, widest, 1)  # (B, L, keys, E), with e from E - 1 to 0
        symbols = windows @ expected.counts  # (B, L, keys, R)
        ranked = symbols.transpose(1, 2).long().flatten(1)
        self._keys = symbols.shape[2]
        self._end = ranked.cumsum(1)
        self._start = self._end - ranked

    def find(self, ranks: Tensor) -> Symbols:
        """Return the symbols at ranks (B, T). A rank beyond the last has any symbol."""
        row = torch.searchsorted(self._end, ranks, right=True).clamp_max(self._end.shape[1] - 1)
        rest = ranks - self._start.gather(1, row)
        group = torch.div(row, self._planes, rounding_mode="floor")
        key = torch.div(group, self._levels, rounding_mode="floor")
        plane, level = row - group * self._planes, group - key * self._levels
        # The 16 groups of the plane: their places in `_held`, and their numbers of symbols with this key.
        at = (level * self._wide + key + self._edge)[..., None] - self._down[level, plane]
        counts = self._held.flatten(1).gather(1, at.flatten(1)).view(at.shape)
        ends = counts.cumsum(2, dtype=torch.int32)
        frequency = (ends <= rest[..., None]).sum(dim=2, keepdim=True).clamp_max(FREQUENCIES - 1)
        rest = rest - (ends - counts).gather(2, frequency)[..., 0]
        bins = at.gather(2, frequency)[..., 0] - level * (self._wide - BINS) - self._edge
        start, blocks = self._strengths.start, self._strengths.blocks
        place = start.gather(1, bins.clamp(0, start.shape[1] - 1)) + rest
        return Symbols(plane, frequency[..., 0], blocks.gather(1, place.clamp(0, blocks.shape[1] - 1)))

    def key_counts(self) -> Tensor:
        """Return the number of each sample's symbols of every key, by decreasing key, (B, keys)."""
        ends = self._end.view(len(self._end), self._keys, -1)[..., -1]
        return ends.diff(dim=1, prepend=ends.new_zeros((len(ends), 1)))

    @cached_property
    def _narrow(self) -> Tensor:
        """The expected sizes of every plane's groups, (L R, 16) int32."""
        return self._down.flatten(0, 1).int()

    def rank(self, sample: Tensor, plane: Tensor, frequency: Tensor, block: Tensor) -> Tensor:
        """Return the ranks of symbols, all (S,) int64: sample 0 to B-1, and plane, frequency, block as in `Symbols`."""
        size = RANKED if sample.device.type == "cpu" else max(1, len(sample))
        columns = (column.split(size) for column in (sample, plane, frequency, block))
        return torch.cat([self._rank(*part) for part in zip(*columns)])

    def _rank(self, sample: Tensor, plane: Tensor, frequency: Tensor, block: Tensor) -> Tensor:
        strengths, cell = self._strengths, sample * len(self._strengths.level) + block
        level, last = strengths.level.index_select(0, block), frequency[:, None]
        group = level * self._planes + plane
        down = self._narrow.index_select(0, group)
        key = down.gather(1, last)[:, 0] + strengths.down.flatten().index_select(0, cell)
        edge = (sample * self._levels + level) * self._wide + key + self._edge
        at = edge.int()[:, None] - down
        counts = self._held.flatten().index_select(0, at.flatten()).view(at.shape)
        before = counts.cumsum(1, dtype=torch.int32).gather(1, last) - counts.gather(1, last)
        row = (sample * self._keys + key) * (self._levels * self._planes) + group
        start, place = self._start.flatten(), strengths.place.flatten()
        return start.index_select(0, row) + before[:, 0] + place.index_select(0, cell)
