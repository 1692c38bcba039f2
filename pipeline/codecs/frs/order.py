"""Find symbols by their rank, without sorting millions of keys.

The symbols of a sample are numbered by level, plane, frequency and block, and ranked by decreasing key. Symbols of
equal keys keep their order. The key is the sum of two whole numbers: the expected size e of a group (level, plane,
frequency), a constant of the codec, and the strength of a block, given by the decoded map. This module counts both down
from the largest, as e and v from 0, so that keys k = e + v increase. The number of symbols with key k in a group is the
number of its level's blocks with v = k - e. Sums of these numbers lead from a rank to its plane, a short scan to the
frequency, and a sort of the few blocks to the block. This is a counting sort that visits only the requested symbols,
about 1% of all (find.py). An encoder finds the ranks of symbols with the same sums (ranks.py).

Expected sizes are integers in steps of 2^(1/4), and strengths are computed from integers, because a rounding difference
between two devices would corrupt the sample.

Shapes: B batch, L levels, R planes, 16 frequencies of a 4x4 block, N blocks of all levels of the canvas, T symbols.
"""

from __future__ import annotations

from copy import copy
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
BINS = STRENGTHS + 1  # one more for blocks outside the sample's grid
WIDEST = 512  # largest difference between two expected sizes; calibration writes at most 80
BOUNDS = np.array([round(2 ** (k / 2)) for k in range(STRENGTHS - 1)], np.int64)


def log_class(sums: Tensor) -> Tensor:
    """Return about 2 log2(sum) + 1 of int64 sums, and 0 for 0. The result is equal on every device."""
    return torch.searchsorted(_bounds(sums.device), sums, right=True)


@lru_cache(maxsize=16)
def _bounds(device: torch.device) -> Tensor:
    return torch.from_numpy(BOUNDS).to(device)


@dataclass(frozen=True, eq=False)
class ExpectedSizes:
    """`{what}_expected` of a codec on a device.

    down: (L, R, 16) int64, e of each group. counts: (L, E, R) float64, the number of groups with e = E - 1, ..., 0.
    """

    down: Tensor
    counts: Tensor

    @classmethod
    def from_table(cls, table: np.ndarray, device: torch.device, edge: int = 0) -> ExpectedSizes:
        """Read an int16 table (L, R, 16). edge: least `edge`, so that tensors have a common one."""
        down = int(table.max()) - table.astype(np.int64)
        counts = np.zeros((len(down), max(edge, int(down.max())) + 1, down.shape[1]))
        level, plane, _ = np.indices(down.shape)
        np.add.at(counts, (level, counts.shape[1] - 1 - down, plane), 1)
        return cls(torch.from_numpy(down).to(device), torch.from_numpy(counts).to(device))

    @property
    def edge(self) -> int:
        """E - 1. Blocks with v are at index v + E - 1, so that v = k - e is never outside."""
        return self.counts.shape[1] - 1

    @property
    def wide(self) -> int:
        """The number of places of a level's blocks."""
        return STRENGTHS + 2 * self.edge

    @cached_property
    def places(self) -> Tensor:
        """Where the blocks with v = -e are, among those of all levels: (L R, 16) int64, for each level and plane."""
        level = torch.arange(len(self.down), device=self.down.device)[:, None, None]
        return (level * self.wide + self.edge - self.down).flatten(0, 1)

    @cached_property
    def narrow_places(self) -> Tensor:
        """`places` as int32, which take less of a CPU's cache."""
        return self.places.int()


class Symbols(NamedTuple):
    """Symbols of a batch, each (B, T) int64: row (level * R + plane), frequency 0 to 15, block 0 to N-1 of the canvas.

    planes: R.
    """

    row: Tensor
    frequency: Tensor
    block: Tensor
    planes: int

    @property
    def plane(self) -> Tensor:
        """Plane 0 to R-1 of each symbol."""
        return self.row % self.planes


@dataclass(frozen=True, eq=False)
class Blocks:
    """Numbers of blocks, with E - 1 empty places before and after those of each level.

    held, ends: at each place, and at all places up to it, (B, L (109 + 2 E)). windows: `held` for each key k, at the
    places with v = k - e, from e = E - 1 to 0, (L, B keys, E) float64. A CPU leaves out keys that no symbol has.
    """

    held: Tensor
    ends: Tensor
    windows: Tensor

    def part(self, rows: slice) -> Blocks:
        """Return those of some samples."""
        windows = self.windows.unflatten(1, (len(self.held), -1))[:, rows].flatten(1, 2)
        return Blocks(self.held[rows], self.ends[rows], windows)


class BlockStrengths:
    """The blocks of a batch by level and strength.

    level: (N,) int64, of each block. down: (B, N) int64, log size of its level minus that of each block, 0 to 110.
    inside: (B, N) bool, whether a block is in the sample's own grid; (B / n, N) for n maps of each sample.
    """

    down: Tensor
    order: Tensor
    _shared: tuple[BlockStrengths, slice] | None = None

    def __init__(self, level: Tensor, levels: int, down: Tensor, inside: Tensor) -> None:
        self.level, self.down = level, down
        # Those outside the sample's grid follow the others of their level.
        placed = torch.where(inside, down.unflatten(0, (-1, len(inside))), STRENGTHS).flatten(0, 1)
        bins = torch.add(placed, level, alpha=BINS)
        self.order = torch.argsort(bins, dim=1, stable=True)
        held = bins.new_zeros((len(down), levels * BINS)).scatter_add_(1, bins, torch.ones_like(bins))
        parts = (part.view(len(down), levels, BINS) for part in (held.int(), held.cumsum(1)))
        self._held, self._ends = (part[..., :STRENGTHS] for part in parts)
        self._used = STRENGTHS  # a GPU is not asked for the weakest block, because that would wait for it
        if held.device.type == "cpu":
            self._used = int(np.flatnonzero(self._held.numpy().any(axis=(0, 1))).max(initial=0)) + 1
        self._blocks: dict[int, Blocks] = {}

    def part(self, rows: slice) -> BlockStrengths:
        """Return those of some samples. What `blocks` computes is shared."""
        found = copy(self)
        found.down, found.order, found._shared = self.down[rows], self.order[rows], (self, rows)
        return found

    def blocks(self, edge: int) -> Blocks:
        """Return the blocks with `edge` empty places before and after those of each level."""
        if self._shared is not None:
            whole, rows = self._shared
            return whole.blocks(edge).part(rows)
        if edge not in self._blocks:
            held, ends = (F.pad(part, (edge, edge)) for part in (self._held, self._ends))
            windows = held[..., : self._used + 2 * edge].double().unfold(2, edge + 1, 1).transpose(0, 1).contiguous()
            self._blocks[edge] = Blocks(held.flatten(1), ends.flatten(1), windows.flatten(1, 2))
        return self._blocks[edge]


class SymbolOrder:
    """The ranks of a batch's symbols. expected: sizes of the groups. strengths: of the blocks.

    end, start: the number of symbols up to each (key, level, plane) and before it, (B, keys L R).
    """

    def __init__(self, expected: ExpectedSizes, strengths: BlockStrengths) -> None:
        self.expected, self.strengths, self.blocks = expected, strengths, strengths.blocks(expected.edge)
        self.planes, batch = expected.counts.shape[2], len(self.blocks.held)
        # Symbols of key k in plane (l, r): sum over e of counts[l, e, r] held[l, k - e]. Sums are exact in float64.
        symbols = torch.bmm(self.blocks.windows, expected.counts)  # (L, B keys, R)
        by_key = symbols.unflatten(1, (batch, -1)).permute(1, 2, 0, 3)
        ranked = by_key.to(torch.long, memory_format=torch.contiguous_format).flatten(1)
        self.end = ranked.cumsum(1)
        self.start = torch.sub(self.end, ranked, out=ranked)

    @property
    def rows(self) -> int:
        """The number of planes of all levels."""
        return len(self.expected.places)

    def key_counts(self) -> Tensor:
        """Return the number of each sample's symbols of every key, by decreasing key, (B, keys)."""
        ends = self.end.unflatten(1, (-1, self.rows))[..., -1]
        return ends.diff(dim=1, prepend=ends.new_zeros((len(ends), 1)))
