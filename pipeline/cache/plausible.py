"""What a shard's FPN grids and channels may be. It limits the memory that a forged shard can make a reader allocate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.records import LevelShapes

WIDEST = 1 << 16  # largest number of channels of a feature map or class head
UNEVEN = 2  # largest ratio of positions between two samples of a shard (the plan's own limit is 1.25)
FEW = 64  # positions added to that limit, because sizes of coarse levels are rounded to whole positions


def require_plausible_grids(shapes: np.ndarray, samples: int, depth: int) -> None:
    """Raise ValueError where `shapes` (N, L, 2) are not the FPN grids of the samples of one shard."""
    if (
        shapes.dtype != np.int64
        or shapes.shape != (samples, depth, 2)
        or not 0 < shapes.min() <= shapes.max() < 1 << 20
    ):
        raise ValueError(f"invalid FPN grids of shape {shapes.shape}")
    positions = shapes.prod(axis=2).sum(axis=1)
    if positions.max() > UNEVEN * positions.min() + FEW:
        raise ValueError("sizes of samples differ too much")


def read_channels(settings: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the channels of features, class scores and boxes in a codec's settings, 0 for what it does not store.

    Raise ValueError where they are invalid.
    """
    wide = [settings["channels"], settings["score_channels"], settings.get("box_channels", 0)]
    if any(type(n) is not int or not 0 <= n <= WIDEST for n in wide) or not wide[0]:
        raise ValueError(f"invalid channels {wide}")
    return wide[0], wide[1], wide[2]


def most_bytes(levels: LevelShapes | np.ndarray, channels: Sequence[int]) -> int:
    """Return the most bytes of an array on these grids: four for each channel, with levels padded to 4 x 4 blocks."""
    return 4 * max(channels) * sum(-(-int(h) // 4) * -(-int(w) // 4) * 16 for h, w in levels) + len(levels)
