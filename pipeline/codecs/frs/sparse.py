"""Rebuild tensors from the nonzero coefficients alone, about 1% of all.

The product with the basis adds one row of the basis for each coefficient, which is what an embedding bag does. The
inverse DCT follows, on channels instead of planes. All levels and samples share one axis, so the number of operations
does not depend on the batch. Sums follow the order of the sorted symbols, so a sample's values do not depend on the
other samples of its batch.

Shapes: B batch, L levels, R planes, X channels, N blocks of all levels of the canvas, T symbols.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs.order import FREQUENCIES, Symbols
from pipeline.codecs.frs.transform import inverse_dct_matrix


def residuals(symbols: Symbols, values: Tensor, rows: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Return the residuals (B, N, 16, X) of every block, row by row, from symbols and their values times the step.

    values: (B, T). rows: columns of the basis as (L, R, X), or (1, R, X) for all levels. level: (N,), of each block.
    Also return a tensor of the same size that is free: new memory would cost a CPU more than the arithmetic.
    """
    batch, blocks, device = len(values), len(level), values.device
    sample = torch.arange(batch, device=device)[:, None]
    bag, by_bag = ((sample * blocks + symbols.block) * FREQUENCIES + symbols.frequency).flatten().sort(stable=True)
    row = symbols.plane if len(rows) == 1 else symbols.plane + level[symbols.block] * rows.shape[1]
    sums = F.embedding_bag(
        row.flatten()[by_bag],
        rows.flatten(0, 1),
        torch.searchsorted(bag, torch.arange(batch * blocks * FREQUENCIES, device=device)),
        mode="sum",
        per_sample_weights=values.flatten()[by_bag],
    )
    sums = sums.unflatten(0, (-1, FREQUENCIES))
    return (inverse_dct_matrix(device) @ sums).unflatten(0, (batch, blocks)), sums.unflatten(0, (batch, blocks))
