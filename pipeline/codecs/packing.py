"""FPN levels packed into one axis, and samples into one batch: shared by all codecs.

Shape legend: B batch, L levels, (H_l, W_l) grid of level l, P positions of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.records import EncodedBatch, LevelShapes, canvas

Sample = dict[str, np.ndarray]


def positions(levels: LevelShapes) -> int:
    """Positions of all levels."""
    return sum(h * w for h, w in levels)


def pack(levels: Sequence[Tensor]) -> Tensor:
    """[(B, X, H_l, W_l)] -> (B, X, P), levels in order, rows first."""
    return torch.cat([level.flatten(2) for level in levels], dim=2)


def unpack(packed: Tensor, shapes: tuple[LevelShapes, ...]) -> list[Tensor]:
    """(B, X, >= P) -> [(B, X, H_l, W_l)] on the common canvas, zeros beyond each sample's own grid."""
    rows = [x.split([h * w for h, w in own] + [x.shape[1] - positions(own)], 1) for x, own in zip(packed, shapes)]
    return [
        on_canvas([row[level].unflatten(1, own[level]) for row, own in zip(rows, shapes)], size)
        for level, size in enumerate(canvas(shapes))
    ]


def on_canvas(samples: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """[(..., H_b, W_b)] -> (B, ..., H, W), zeros beyond a sample's own grid."""
    if all(tuple(s.shape[-2:]) == size for s in samples):
        return torch.stack(list(samples))
    whole = samples[0].new_zeros((len(samples), *samples[0].shape[:-2], *size))
    for row, sample in zip(whole, samples):
        row[..., : sample.shape[-2], : sample.shape[-1]] = sample
    return whole


def stack(samples: Sequence[Sample], shapes: Sequence[LevelShapes]) -> EncodedBatch:
    """Collate samples of one batch; arrays of different shards are padded with zeros to a common shape."""
    arrays = {}
    for name in samples[0]:
        parts = [sample[name] for sample in samples]
        shape = tuple(max(sides) for sides in zip(*(part.shape for part in parts)))
        whole = np.zeros((len(parts), *shape), parts[0].dtype)
        for row, part in zip(whole, parts):
            row[tuple(slice(0, n) for n in part.shape)] = part
        arrays[name] = torch.from_numpy(whole)
    return EncodedBatch(arrays, tuple(shapes))
