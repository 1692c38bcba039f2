"""Find symbols by their rank, without sorting millions of keys.

The symbols of a sample are numbered by level, plane, frequency and block, and ranked by decreasing key. Symbols of
equal keys keep their order. The key is the sum of two whole numbers: the expected size e of a group (level, plane,
frequency), a constant of the codec, and the strength of a block, given by the decoded map. This module counts both down
from the largest, as e and v from 0, so that keys k = e + v increase. The number of symbols with key k in a group is the
number of its level's blocks with v = k - e. Sums of these numbers lead from a rank to its plane, a short scan to the
frequency, and a sort of the few blocks to the block. This is a counting sort that visits only the requested symbols,
about 1% of all. Symbols of several tensors of a batch are found together, which takes hardly more operations than one.

Expected sizes are integers in steps of 2^(1/4), and strengths are computed from integers, because a rounding difference
between two devices would corrupt the sample.

Shapes: B batch, L levels, R planes, 16 frequencies of a 4x4 block, N blocks of all levels of the canvas, T symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, eq=False)
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


class BlockStrengths:
    """The blocks of a batch by level and strength.

    level: (N,) int64, of each block. strength: (B, N) int64, log size of each block minus that of its level, -110 to 0.
    inside: (B, N) bool, whether a block is in the sample's own grid.
    """

    def __init__(self, level: Tensor, levels: int, strength: Tensor, inside: Tensor) -> None:
        self.level, self.down = level, strength.neg()
        # Those outside the sample's grid follow the others of their level.
        self.bins = torch.add(torch.where(inside, self.down, STRENGTHS), level, alpha=BINS)
        self.blocks = torch.argsort(self.bins, dim=1, stable=True)
        held = self.bins.new_zeros((len(strength), levels * BINS))
        held.scatter_add_(1, self.bins, torch.ones_like(self.bins))
        ends, shape = held.cumsum(1), (len(strength), levels, BINS)
        self.held, self.ends = (part.view(shape)[..., :STRENGTHS] for part in (held.int(), ends))
        self.used = STRENGTHS  # a GPU is not asked for the weakest block, because that would wait for it
        if held.device.type == "cpu":
            self.used = int(np.flatnonzero(self.held.numpy().any(axis=(0, 1))).max(initial=0)) + 1


class SymbolOrder:
    """The ranks of a batch's symbols. expected: sizes of the groups. strengths: of the blocks.

    held, ends: the number of blocks at each place (B, L, `wide`), and of all blocks up to it. end, start: the number of
    symbols up to each (key, level, plane) and before it, (B, keys L R).
    """

    def __init__(self, expected: ExpectedSizes, strengths: BlockStrengths) -> None:
        self.expected, self.strengths = expected, strengths
        _, widest, self.planes = expected.counts.shape
        self.held, self.ends = (
            F.pad(part, (expected.edge, expected.edge)) for part in (strengths.held, strengths.ends)
        )
        # Symbols of key k in plane (l, r): sum over e of counts[l, e, r] held[l, k - e]. Sums are exact in float64.
        windows = self.held[..., : strengths.used + 2 * expected.edge].double().unfold(2, widest, 1)
        # windows: (B, L, keys, E), with e from E - 1 to 0
        symbols = windows.transpose(0, 1).flatten(1, 2) @ expected.counts  # (L, B keys, R)
        by_key = symbols.unflatten(1, (len(windows), -1)).permute(1, 2, 0, 3)
        ranked = by_key.to(torch.long, memory_format=torch.contiguous_format).flatten(1)
        self.end = ranked.cumsum(1)
        self.start = torch.sub(self.end, ranked, out=ranked)

    @property
    def rows(self) -> int:
        """The number of planes of all levels."""
        return len(self.expected.places)

    def find(self, numbers: Tensor) -> Symbols:
        """Return the symbols with numbers (B, T), which are their ranks plus 1. One beyond the last has any symbol."""
        return find_all([self], [numbers])[0]

    def key_counts(self) -> Tensor:
        """Return the number of each sample's symbols of every key, by decreasing key, (B, keys)."""
        ends = self.end.unflatten(1, (-1, self.rows))[..., -1]
        return ends.diff(dim=1, prepend=ends.new_zeros((len(ends), 1)))

    def rank(self, sample: Tensor, plane: Tensor, frequency: Tensor, block: Tensor) -> Tensor:
        """Return the ranks of symbols, all (S,) int64: sample 0 to B-1, plane, frequency, block as in `Symbols`."""
        size = RANKED if sample.device.type == "cpu" else max(1, len(sample))
        columns = (column.split(size) for column in (sample, plane, frequency, block))
        return torch.cat([self._rank(*part) for part in zip(*columns)])

    @cached_property
    def _narrow(self) -> Tensor:
        """The places of every plane's groups, (L R, 16) int32."""
        return self.expected.places.int()

    @cached_property
    def _within(self) -> Tensor:
        """The place of each block among those of its level and strength, (B, N) int64."""
        strengths, held, ends = self.strengths, self.held.flatten(1), self.ends.flatten(1)
        numbers = torch.arange(len(strengths.level), device=held.device).expand_as(strengths.blocks)
        place = torch.empty_like(strengths.blocks).scatter_(1, strengths.blocks, numbers)
        at = torch.add(strengths.down, strengths.level, alpha=self.expected.wide) + self.expected.edge
        return place - (ends - held).gather(1, at)

    def _rank(self, sample: Tensor, plane: Tensor, frequency: Tensor, block: Tensor) -> Tensor:
        strengths, cell, last = self.strengths, sample * len(self.strengths.level) + block, frequency[:, None]
        row = strengths.level.index_select(0, block) * self.planes + plane
        own = self.expected.down.flatten().index_select(0, row * FREQUENCIES + frequency)
        key = own + strengths.down.flatten().index_select(0, cell)
        at = self._narrow.index_select(0, row) + (sample * self.held[0].numel() + key).int()[:, None]
        counts = self.held.flatten().index_select(0, at.flatten()).view(at.shape)
        before = counts.cumsum(1, dtype=torch.int32).gather(1, last) - counts.gather(1, last)
        first = self.start.flatten().index_select(0, sample * self.start.shape[1] + key * self.rows + row)
        return first + before[:, 0] + self._within.flatten().index_select(0, cell)


def find_all(orders: Sequence[SymbolOrder], numbers: Sequence[Tensor]) -> list[Symbols]:
    """Return the symbols of several tensors, each with its order and numbers as in `SymbolOrder.find`."""
    keys, rows, rests = [], [], []
    for order, given in zip(orders, numbers):
        number = torch.minimum(given, order.end[:, -1:])
        cell = torch.searchsorted(order.end, number)
        key = torch.div(cell, order.rows, rounding_mode="floor")
        keys.append(key)
        rows.append(torch.sub(cell, key, alpha=order.rows))
        rests.append(number - order.start.gather(1, cell))
    # The 16 groups of each plane: their places, and their numbers of symbols with this key.
    first_row, first_place = 0, 0
    places, shifted = [], []
    for order, row in zip(orders, rows):
        places.append(order.expected.places + first_place if first_place else order.expected.places)
        shifted.append(row + first_row if first_row else row)
        first_row, first_place = first_row + order.rows, first_place + order.held[0].numel()
    key, row, rest = join(keys), join(shifted), join(rests).int()
    at = join(places, 0).index_select(0, row.flatten()).unflatten(0, row.shape).add_(key[..., None])
    held, ends = (join([part.flatten(1) for part in parts]) for parts in zip(*((o.held, o.ends) for o in orders)))
    upto = held.gather(1, at.flatten(1)).view_as(at).cumsum(2, dtype=torch.int32)
    frequency = torch.searchsorted(upto, rest[..., None])
    last = ends.gather(1, at.gather(2, frequency)[..., 0])  # of the blocks at the place, counted from 1
    place = last + (rest - upto.gather(2, frequency)[..., 0]) - 1
    sizes = [number.shape[1] for number in numbers]
    parts = zip(orders, rows, frequency[..., 0].split(sizes, 1), place.split(sizes, 1))
    return [Symbols(row, f, order.strengths.blocks.gather(1, at), order.planes) for order, row, f, at in parts]


def join(parts: Sequence[Tensor], dim: int = 1) -> Tensor:
    """Concatenate tensors; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)
