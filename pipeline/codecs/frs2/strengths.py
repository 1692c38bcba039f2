"""The strengths of a sample's blocks, from the bytes of its map, on the host.

They equal `BatchMaps.strength`, with which a device puts the symbols in order. The entropy coder only counts them, and
a loader worker needs them for every sample that it reads, so they are computed without torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.codecs.frs.map_values import UNIT, whole_values
from pipeline.codecs.frs.order import BOUNDS
from pipeline.codecs.frs.transform import BLOCK
from pipeline.records import LevelShapes


def read_strengths(row: np.ndarray, levels: LevelShapes, top: int) -> list[np.ndarray]:
    """Return the strengths of every level's blocks, int64, of the bytes of a map (L + P,) uint8. top: largest code."""
    values, found, at = whole_values(top), [], len(levels)
    for height, width in levels:
        differences = row[at : at + height * width].reshape(height, width)
        codes = differences.cumsum(axis=0, dtype=np.uint8).cumsum(axis=1, dtype=np.uint8)
        found.append(_strengths(values[codes]))
        at += height * width
    return found


def uniform_strengths(levels: LevelShapes) -> list[np.ndarray]:
    """Return the strengths of every level's blocks where the map is 1 at all positions."""
    return [_strengths(np.full(size, UNIT)) for size in levels]


def _strengths(values: np.ndarray) -> np.ndarray:
    """Return the strength of each block of whole numbers (H, W)."""
    height, width = values.shape
    rows = np.add.reduceat(values, np.arange(0, height, BLOCK), axis=0)
    sums = np.add.reduceat(rows, np.arange(0, width, BLOCK), axis=1).ravel()
    return _log_class(sums) - _log_class(sums.sum())


def _log_class(sums: np.ndarray | Sequence[int]) -> np.ndarray:
    """Return `log_class` of frs/order.py."""
    return np.searchsorted(BOUNDS, sums, side="right")
