"""Quantised coefficients as a short list of tokens: sorted by the size they can be expected to have, zeros skipped.

Both sides know what size to expect: of a group (level, plane, frequency) from calibration, of a block from the decoded
map. Sorted by it, large values come first and nearly all zeros last, and zstd sees runs of like statistics. Expected
sizes are whole numbers (steps of 2^(1/4)), from whole numbers: a rounding that differed between devices would scramble
a sample.
Measured beside planes of uint16 under Blosc: a third fewer bytes, and a tenth of the time (docs/results/codec.md).

Shape legend: L levels, R planes, F = 16 frequencies of a 4x4 block, N_l blocks of level l, N = R F sum(N_l) symbols.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.codec.transform import BLOCK, to_blocks
from pipeline.errors import CodecError

FREQUENCIES = BLOCK * BLOCK
LARGEST = 2**22 - 1  # of |q|, so that a token fits 31 bits
FILLER = 255  # a token that skips 256 zeros
_BOUNDS = np.array([round(2 ** (k / 2)) for k in range(110)], np.int64)


def log_class(sums: Tensor) -> Tensor:
    """Whole sums (int64) -> about 2 log2(sum) + 1, exactly the same on every device; 0 for 0."""
    return torch.searchsorted(torch.from_numpy(_BOUNDS).to(sums.device), sums, right=True)


def to_groups(planes: Tensor) -> Tensor:
    """(R, H4, W4) -> (R, 16, N_l): frequency by frequency (row first), blocks row by row."""
    r, h, w = planes.shape
    blocks = planes.reshape(r, h // BLOCK, BLOCK, w // BLOCK, BLOCK).permute(0, 2, 4, 1, 3)
    return blocks.reshape(r, FREQUENCIES, -1)


def from_groups(groups: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `to_groups`; height and width are multiples of 4."""
    r = groups.shape[0]
    blocks = groups.reshape(r, BLOCK, BLOCK, height // BLOCK, width // BLOCK).permute(0, 3, 1, 4, 2)
    return blocks.reshape(r, height, width)


def block_sums(whole: Tensor) -> Tensor:
    """(H, W) int64 map in whole numbers -> (N_l,) its sum over every 4x4 block."""
    return to_groups(to_blocks(whole[None]))[0].sum(dim=0)


def symbol_order(expected: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Where every symbol of one sample lies in the sorted stream: [(R, 16, N_l)] int64, a permutation of 0..N-1.

    expected (L, R, 16) int64: log size of each group at unit strength; maps [(H_l, W_l)] int64, in whole numbers.
    Descending by expected[l, r, f] + log_class(block) - log_class(level), ties in the order level, plane, frequency,
    block: what a stable argsort gives, by counting, since a sort of millions is slow.
    """
    rows = [(table - log_class(m.sum())).flatten() for table, m in zip(expected, maps)]
    columns = [log_class(block_sums(m)) for m in maps]
    top = max(int(row.max() + column.max()) for row, column in zip(rows, columns))
    low = min(int(row.min() + column.min()) for row, column in zip(rows, columns))
    counts, firsts = [], []
    for row, column in zip(rows, columns):
        below = column.max() - column  # 0 for the strongest blocks
        histogram = torch.bincount(below, minlength=1)
        first = top - row - column.max()
        span = first[:, None] + torch.arange(len(histogram), device=row.device)
        count = torch.zeros((len(row), top - low + 1), dtype=torch.int64, device=row.device)
        counts.append(count.scatter_(1, span, histogram.expand(len(row), -1)))
        firsts.append((first, below))
    count = torch.cat(counts)
    total = count.sum(dim=0)
    start = count.cumsum(dim=0) - count + (total.cumsum(dim=0) - total)
    order, at = [], 0
    for (first, below), table in zip(firsts, expected):
        group = slice(at, at + len(first))
        at += len(first)
        rank = _rank_among_equals(below)
        places = start[group].gather(1, first[:, None] + below[None]) + rank
        order.append(places.reshape(*table.shape, -1))
    return order


def _rank_among_equals(values: Tensor) -> Tensor:
    """(N,) -> how many equal values stand before each."""
    order = torch.argsort(values, stable=True)
    counts = torch.bincount(values)
    begin = counts.cumsum(0) - counts
    ranks = torch.empty_like(values)
    ranks[order] = torch.arange(len(values), device=values.device) - begin[values[order]]
    return ranks


def to_tokens(groups: Sequence[Tensor], order: Sequence[Tensor]) -> Tensor:
    """Quantised [(R, 16, N_l)] (whole floats) -> (T,) int32 tokens: zigzag(q) << 8 | zeros skipped before it.

    256 zeros or more are skipped by FILLER tokens of value 0. Raises CodecError rather than clip.
    """
    stream = torch.empty(sum(g.numel() for g in groups), dtype=torch.float32, device=groups[0].device)
    for group, places in zip(groups, order):
        stream[places.flatten()] = group.flatten()
    at = stream.nonzero()[:, 0]
    values = stream[at]
    largest = float(values.abs().amax()) if len(values) else 0.0
    if not largest <= LARGEST:
        raise CodecError(f"quantised value {largest:.0f} beyond {LARGEST}: this tensor is too large for the step")
    gaps = torch.diff(at, prepend=at.new_full((1,), -1)) - 1
    fillers = torch.div(gaps, FILLER + 1, rounding_mode="floor")
    tokens = torch.full((len(at) + int(fillers.sum()),), FILLER, dtype=torch.int32, device=at.device)
    q = values.to(torch.int32)
    zigzag = (q << 1) ^ (q >> 31)
    tokens[torch.arange(len(at), device=at.device) + fillers.cumsum(0)] = (zigzag << 8) | (gaps % 256).to(torch.int32)
    return tokens


def from_tokens(tokens: Tensor, order: Sequence[Tensor]) -> list[Tensor]:
    """(T,) int32 tokens, zeros behind the last -> quantised [(R, 16, N_l)] float32."""
    count = sum(places.numel() for places in order)
    at = ((tokens & FILLER).long() + 1).cumsum(0) - 1
    zigzag = tokens >> 8
    kept = at < count  # the zeros behind the last token step over the end
    stream = torch.zeros(count, dtype=torch.float32, device=tokens.device)
    stream[at[kept]] = ((zigzag >> 1) ^ -(zigzag & 1))[kept].float()
    return [stream[places] for places in order]
