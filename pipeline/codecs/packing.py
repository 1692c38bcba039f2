"""Pack FPN levels into one axis, and samples into one batch. All codecs use these functions.

Shapes: B batch, L levels, (H_l, W_l) grid of level l, P positions of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.records import EncodedBatch, LevelShapes, canvas

Sample = dict[str, np.ndarray]


def positions(levels: LevelShapes) -> int:
    """Return the number of positions of all levels."""
    return sum(h * w for h, w in levels)


def pack(levels: Sequence[Tensor]) -> Tensor:
    """Pack [(B, X_l, H_l, W_l)] into (B, X, P), level by level, row by row. X is the largest X_l (see `widen`)."""
    widest = max(level.shape[1] for level in levels)
    return torch.cat([widen(level, widest).flatten(2) for level in levels], dim=2)


def widen(level: Tensor, channels: int) -> Tensor:
    """Append zeros to the channels of a level (B, X_l, H_l, W_l), up to `channels`."""
    missing = channels - level.shape[1]
    return F.pad(level, (0, 0, 0, 0, 0, missing)) if missing else level


def narrow(levels: Sequence[Tensor], widths: Sequence[int] | None) -> list[Tensor]:
    """Keep the first `widths[l]` channels of each level (B, X, H_l, W_l). Inverse of `widen`."""
    return list(levels) if widths is None else [level[:, :width] for level, width in zip(levels, widths, strict=True)]


def unpack(packed: Tensor, shapes: tuple[LevelShapes, ...]) -> list[Tensor]:
    """Unpack (B, X, >= P) to [(B, X, H_l, W_l)] on the common canvas, with zeros outside each sample's own grid."""
    rows = [x.split([h * w for h, w in own] + [x.shape[1] - positions(own)], 1) for x, own in zip(packed, shapes)]
    return [
        on_canvas([row[level].unflatten(1, own[level]) for row, own in zip(rows, shapes)], size)
        for level, size in enumerate(canvas(shapes))
    ]


def on_canvas(samples: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Stack [(..., H_b, W_b)] to (B, ..., H, W), with zeros outside each sample's own grid."""
    if all(tuple(s.shape[-2:]) == size for s in samples):
        return torch.stack(list(samples))
    batch = samples[0].new_zeros((len(samples), *samples[0].shape[:-2], *size))
    for row, sample in zip(batch, samples):
        row[..., : sample.shape[-2], : sample.shape[-1]] = sample
    return batch


def stack(samples: Sequence[Sample], shapes: Sequence[LevelShapes]) -> EncodedBatch:
    """Collate samples to a batch. Arrays of different shards are padded with zeros to a common shape."""
    arrays = {}
    for name in samples[0]:
        parts = [sample[name] for sample in samples]
        shape = tuple(max(sides) for sides in zip(*(part.shape for part in parts)))
        batch = np.zeros((len(parts), *shape), parts[0].dtype)
        for row, part in zip(batch, parts):
            row[tuple(slice(0, n) for n in part.shape)] = part
        arrays[name] = torch.from_numpy(batch)
    return EncodedBatch(arrays, tuple(shapes), torch.tensor(shapes))
