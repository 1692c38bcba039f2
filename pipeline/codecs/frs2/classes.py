"""Count a sample's symbols by their sort key, from the decoded map alone.

The key of a symbol is expected[level, plane, frequency] + strength(block), see frs/order.py. All
groups of a level meet all its blocks, so the counts are the convolution of two histograms, and nothing is sorted. The
symbols are stored by descending key: those of one class are a contiguous run, whose length is the class's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CLASSES = 64


class Histogram(NamedTuple):
    """counts (n,) int64 of whole numbers: counts[i] is that of `highest` - i."""

    highest: int
    counts: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray) -> Histogram:
        """Count the numbers of an integer array that is not empty."""
        highest = int(numbers.max())
        return cls(highest, np.bincount((highest - numbers.astype(np.int64)).ravel()))

    def plus(self, other: Histogram) -> Histogram:
        """Return the counts of both."""
        highest = max(self.highest, other.highest)
        starts = [highest - each.highest for each in (self, other)]
        counts = np.zeros(max(at + len(each.counts) for at, each in zip(starts, (self, other))), np.int64)
        for at, each in zip(starts, (self, other)):
            counts[at : at + len(each.counts)] += each.counts
        return Histogram(highest, counts)


def group_histograms(expected: np.ndarray) -> list[Histogram]:
    """Count the expected sizes (L, R, 16) of every level's groups. They are the same for all samples of a cache."""
    return [Histogram.of(level) for level in expected]


def key_histogram(groups: Sequence[Histogram], strengths: Sequence[np.ndarray]) -> Histogram:
    """Count the keys of one sample's symbols. strengths: of every level's blocks, as in `read_strengths`."""
    total: Histogram | None = None
    for group, strength in zip(groups, strengths):
        blocks = Histogram.of(strength)
        keys = Histogram(group.highest + blocks.highest, np.convolve(group.counts, blocks.counts))
        total = keys if total is None else total.plus(keys)
    assert total is not None, "a sample has at least one level"
    return total


def class_sizes(keys: Histogram, top: int) -> np.ndarray:
    """Return the number of symbols of each class, (CLASSES,) int64. Class of a key: top - key, limited to 0..63."""
    classes = np.clip(top - keys.highest + np.arange(len(keys.counts)), 0, CLASSES - 1)
    sizes = np.zeros(CLASSES, np.int64)
    np.add.at(sizes, classes, keys.counts)
    return sizes
