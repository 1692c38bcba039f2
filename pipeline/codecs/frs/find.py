"""Find the symbols of several tensors of a batch together, which takes hardly more operations than one tensor.

The order is that of order.py. Shapes: B batch, T symbols of a tensor, 16 frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from pipeline.codecs.frs.order import ExpectedSizes, SymbolOrder, Symbols


def find_symbols(orders: Sequence[SymbolOrder], numbers: Sequence[Tensor]) -> list[Symbols]:
    """Return the symbols of several tensors, each with its order and its symbols' numbers [(B, T)].

    A number is the rank plus 1. One beyond the last has any symbol.
    """
    keys, rows, rests = zip(*map(_find_planes, orders, numbers))
    # Of each plane, the places of its 16 groups of blocks, and their numbers of symbols with this key.
    blocks = list(dict.fromkeys(order.blocks for order in orders))
    firsts = tuple(blocks.index(order.blocks) * order.blocks.held.shape[1] for order in orders)
    places, starts = _join_places(tuple(order.expected for order in orders), firsts)
    row = join([own + start if start else own for own, start in zip(rows, starts)])
    at = places.index_select(0, row.flatten()).unflatten(0, row.shape).add_(join(keys)[..., None])
    held, ends = join([own.held for own in blocks]), join([own.ends for own in blocks])
    upto, rest = held.gather(1, at.flatten(1)).view_as(at).cumsum(2, dtype=torch.int32), join(rests)
    frequency = torch.searchsorted(upto, rest[..., None])
    last = ends.gather(1, at.gather(2, frequency)[..., 0])  # of the blocks at the place, counted from 1
    place = last + (rest - upto.gather(2, frequency)[..., 0]) - 1
    sizes = [number.shape[1] for number in numbers]
    parts = zip(orders, rows, frequency[..., 0].split(sizes, 1), place.split(sizes, 1))
    return [Symbols(row, f, order.strengths.order.gather(1, at), order.planes) for order, row, f, at in parts]


def _find_planes(order: SymbolOrder, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return key, row (level * R + plane), and the number (int32) among the row's symbols of this key, (B, T) each."""
    known = torch.minimum(numbers, order.end[:, -1:])
    cell = torch.searchsorted(order.end, known)
    key = torch.div(cell, order.rows, rounding_mode="floor")
    rest = known - order.start.gather(1, cell)
    return key, torch.sub(cell, key, alpha=order.rows), rest.int()


@lru_cache(maxsize=16)
def _join_places(expected: tuple[ExpectedSizes, ...], firsts: tuple[int, ...]) -> tuple[Tensor, list[int]]:
    """Return the places of all tensors' rows, each after its first one, and the number of each tensor's first row."""
    counts = [len(one.places) for one in expected]
    starts = [sum(counts[:number]) for number in range(len(counts))]
    return torch.cat([one.places + first for one, first in zip(expected, firsts)]), starts


def join(parts: Sequence[Tensor], dim: int = 1) -> Tensor:
    """Concatenate tensors; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)
