"""What a shard's FPN grids and channels may be. It limits the memory that a forged shard can make a reader allocate.

Stage 1 refuses what a reader would refuse, before it computes the first view of a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.budget import BUDGET, excess
from pipeline.records import LevelShapes, canvas

FINEST = 4  # smallest stride of an FPN level, in pixels
BLOCK = 4  # grids are decoded in whole blocks of 4x4
UNEVEN = 2  # largest ratio of positions between two samples of a shard (the plan's own limit is 1.25)
CODED = 3  # a coded symbol has at most 9 bytes, a decoded one 4
ITEMS = 4  # most arrays of a sample's only member
ROOM = 1 << 20  # bytes of a sample besides its tensors: names, lengths, checksums
FEW = 64  # positions added to that limit, because sizes of coarse levels are rounded to whole positions


def require_plausible_grids(shapes: np.ndarray, samples: int, depth: int, channels: Sequence[int]) -> None:
    """Raise ValueError where `shapes` (N, L, 2) are not the FPN grids of the samples of one shard, or cost too much."""
    if (
        shapes.dtype != np.int64
        or shapes.shape != (samples, depth, 2)
        or not 0 < shapes.min() <= shapes.max() < 1 << 20
    ):
        raise ValueError(f"invalid FPN grids of shape {shapes.shape}")
    positions = shapes.prod(axis=2).sum(axis=1)
    if positions.max() > UNEVEN * positions.min() + FEW:
        raise ValueError("sizes of samples differ too much")
    blocks = (-(-shapes // BLOCK)).prod(axis=2).sum(axis=1)
    _require_affordable(int(blocks.max()) * BLOCK**2, channels)


def require_plausible_view(levels: LevelShapes, pad: tuple[int, int], channels: Sequence[int]) -> None:
    """Raise ValueError where a view of padded shape `pad` cannot have these FPN grids, or costs too much.

    channels: those of features, class scores and boxes.
    """
    _require(excess("pixels of a view", pad[0] * pad[1], BUDGET.pixels))
    most = tuple(-(-side // FINEST) for side in pad)
    for height, width in levels:
        if height > most[0] or width > most[1]:
            raise ValueError(f"FPN grid: expected at most {most} for a view of {pad}, found {(height, width)}")
    _require_affordable(padded_positions(levels), channels)


def require_plausible_batch(levels: Sequence[LevelShapes], channels: Sequence[int]) -> None:
    """Raise ValueError where views that are decoded together, each padded to the largest grids, cost too much."""
    if levels:
        size = len(levels) * decoded_bytes(padded_positions(canvas(tuple(levels))), channels)
        _require(excess(f"decoded bytes of {len(levels)} views", size, BUDGET.step_bytes))


def padded_positions(levels: LevelShapes | np.ndarray) -> int:
    """Return the number of positions of all levels, in whole blocks."""
    return sum(-(-int(h) // BLOCK) * -(-int(w) // BLOCK) * BLOCK**2 for h, w in levels)


def decoded_bytes(positions: int, channels: Sequence[int]) -> int:
    """Return the bytes of the decoded float32 tensors and map of a view."""
    return 4 * (sum(channels) + 1) * positions


def _require_affordable(positions: int, channels: Sequence[int]) -> None:
    _require(excess("positions of a view", positions, BUDGET.positions))
    _require(excess("decoded bytes of a view", decoded_bytes(positions, channels), BUDGET.sample_bytes))


def _require(wrong: str | None) -> None:
    if wrong is not None:
        raise ValueError(wrong)


def read_channels(settings: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the channels of features, class scores and boxes in a codec's settings, 0 for what it does not store.

    Raise ValueError where they are invalid.
    """
    names = ("channels", "score_channels", "box_channels")
    found = [settings["channels"], settings["score_channels"], settings.get("box_channels") or 0]
    for name, number, least, most in zip(
        names, found, (1, 0, 0), (BUDGET.channels, BUDGET.score_channels, BUDGET.score_channels)
    ):
        if type(number) is not int or not least <= number <= most:
            raise ValueError(f"{name}: expected a whole number from {least} to {most}, found {number!r:.40}")
    return found[0], found[1], found[2]


def most_bytes(levels: LevelShapes | np.ndarray, channels: tuple[int, int, int]) -> int:
    """Return the most bytes of an array on these grids: four for each channel, with levels padded to 4 x 4 blocks.

    The symbols of a wide head are up to twice as many as its numbers: it has a plane for each channel, and others.
    """
    features, scores, boxes = channels
    size = 4 * max(features, 2 * scores, boxes) * padded_positions(levels)
    return min(size, BUDGET.sample_bytes) + len(levels)


def most_stored(levels: LevelShapes, channels: tuple[int, int, int], members: int) -> int:
    """Return the most bytes of a stored sample, with headers. Coded symbols can take more bytes than decoded ones."""
    return CODED * max(members, ITEMS) * most_bytes(levels, channels) + ROOM
