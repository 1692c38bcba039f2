"""Rebuild tensors from the nonzero coefficients alone, about 1% of all.

The product with the basis adds one row of the basis for each coefficient, which is what an embedding bag does. The
inverse DCT follows, on channels instead of planes. All levels, samples and tensors share one axis, so the number of
operations does not depend on the batch. Sums follow the order of the sorted symbols, so a sample's values do not depend
on the other samples of its batch.

Shapes: B batch, L levels, R planes, X channels, N blocks of all levels of the canvas, T coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs.canvas import Canvas
from pipeline.codecs.frs.find import join
from pipeline.codecs.frs.order import FREQUENCIES
from pipeline.codecs.frs.transform import inverse_dct_matrix


class Coefficients(NamedTuple):
    """The nonzero coefficients of a tensor: block, frequency, row of the basis and value, (B, T) each.

    basis: the vectors as rows (rows, X). channel: where a coefficient adds to one channel alone, its number (B, T),
    negative for the others; None if all have a row.
    """

    block: Tensor
    frequency: Tensor
    row: Tensor
    values: Tensor
    basis: Tensor
    channel: Tensor | None = None


def residuals(parts: Sequence[Coefficients], canvas: Canvas) -> list[tuple[Tensor, Tensor]]:
    """Return the residuals (B, N, 16, X) of every block, row by row, of each tensor.

    Also return of each a tensor of the same size that is free: new memory would cost a CPU more than the arithmetic.
    """
    batch, blocks = len(canvas.own), len(canvas.block_level)
    sample = canvas.numbers(len(parts) * batch).view(-1, batch, 1)
    block = join([torch.add(part.block, at, alpha=blocks) for part, at in zip(parts, sample)])
    frequency, row, values = (join(fields) for fields in list(zip(*parts))[1:4])
    bag, by_bag = torch.add(frequency, block, alpha=FREQUENCIES).flatten().sort(stable=True)
    row, values = row.flatten()[by_bag], values.flatten()[by_bag]
    bags, counts = batch * blocks * FREQUENCIES, [part.values.numel() for part in parts]
    starts = torch.searchsorted(bag, canvas.numbers(len(parts) * bags)).split(bags)
    found, first = [], 0
    for part, own, *of in zip(parts, starts, row.split(counts), values.split(counts)):
        sums = F.embedding_bag(of[0], part.basis, own - first if first else own, mode="sum", per_sample_weights=of[1])
        sums = sums.view(batch, blocks, FREQUENCIES, -1)
        if part.channel is not None:
            _add_channels(sums, part, part.channel, sample[0])
        found.append(_transform(sums))
        first += part.values.numel()
    return found


def _add_channels(sums: Tensor, part: Coefficients, channel: Tensor, sample: Tensor) -> None:
    """Add the coefficients of single channels to sums (B, N, 16, X). sample: numbers (B, 1)."""
    _, blocks, frequencies, width = sums.shape
    bag = (sample * blocks + part.block) * frequencies + part.frequency
    at = torch.add(channel.clamp_min(0), bag, alpha=width)
    sums.view(-1).index_add_(0, at.flatten(), (part.values * (channel >= 0)).flatten())


def _transform(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inverse DCT of coefficients (B, N, 16, X), and the coefficients."""
    return (inverse_dct_matrix(sums.device) @ sums.flatten(0, 1)).view_as(sums), sums
