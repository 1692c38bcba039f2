"""Find the ranks of symbols in the order of order.py. Shapes: S symbols, B batch, N blocks, 16 frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.codecs.frs.order import FREQUENCIES, SymbolOrder

RANKED = 1 << 14  # symbols that a CPU ranks at once, so that it keeps their groups in its cache


def find_ranks(order: SymbolOrder, sample: Tensor, plane: Tensor, frequency: Tensor, block: Tensor) -> Tensor:
    """Return the ranks of symbols, all (S,) int64: sample 0 to B-1, plane, frequency, block as in `Symbols`."""
    within = _places(order).flatten()
    size = RANKED if sample.device.type == "cpu" else max(1, len(sample))
    columns = (column.split(size) for column in (sample, plane, frequency, block))
    return torch.cat([_find_ranks(order, within, *part) for part in zip(*columns)])


def _places(order: SymbolOrder) -> Tensor:
    """Return the place of each block among those of its level and strength, (B, N) int64."""
    level, sorted_blocks, blocks = order.strengths.level, order.strengths.order, order.blocks
    numbers = torch.arange(len(level), device=level.device).expand_as(sorted_blocks)
    place = torch.empty_like(sorted_blocks).scatter_(1, sorted_blocks, numbers)
    at = torch.add(order.strengths.down, level, alpha=order.expected.wide) + order.expected.edge
    return place - (blocks.ends - blocks.held).gather(1, at)


def _find_ranks(
    order: SymbolOrder, within: Tensor, sample: Tensor, plane: Tensor, frequency: Tensor, block: Tensor
) -> Tensor:
    expected, level, held, last = order.expected, order.strengths.level, order.blocks.held, frequency[:, None]
    row, cell = level.index_select(0, block) * order.planes + plane, sample * len(level) + block
    own = expected.down.flatten().index_select(0, row * FREQUENCIES + frequency)
    key = own + order.strengths.down.flatten().index_select(0, cell)
    # The blocks of this key at the plane's 16 groups.
    at = expected.narrow_places.index_select(0, row) + (sample * held.shape[1] + key).int()[:, None]
    counts = held.flatten().index_select(0, at.flatten()).view(at.shape)
    before = counts.cumsum(1, dtype=torch.int32).gather(1, last) - counts.gather(1, last)
    first = order.start.flatten().index_select(0, sample * order.start.shape[1] + key * order.rows + row)
    return first + before[:, 0] + within.index_select(0, cell)
