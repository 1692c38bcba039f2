"""The non-zero symbols of a tensor by class, and the pair (bucket of the gap, bucket of the size) of each.

Numbers are coded as a bucket and low bits: 0, 1, 2, 3, 4-5, 6-7, 8-11, 12-15, 16-23, 24-31, 32-47, ...
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.codecs.frs.tokens import FILLER
from pipeline.codecs.frs2.ans_model import EVEN
from pipeline.errors import CodecError, CorruptCache

SIDE = 16  # buckets of a gap, and of a size, in a pair
FULL = SIDE - 1  # the bucket in a pair for larger numbers, which are written in full
_NUMBERS = np.arange(64)
WIDTHS = np.where(_NUMBERS < 4, 0, _NUMBERS // 2 - 1)  # low bits of each bucket
FIRSTS = np.where(_NUMBERS < 4, _NUMBERS, (2 + _NUMBERS % 2) << WIDTHS)  # first number of each bucket
_SMALL = np.searchsorted(FIRSTS, np.arange(FIRSTS[FULL] + 1), side="right") - 1  # buckets of 0..192


def lengths(numbers: np.ndarray) -> np.ndarray:
    """Return the number of bits of whole numbers below 2^53; 0 for 0."""
    return np.frexp(numbers.astype(np.float64))[1].astype(np.int64)


def bucket(numbers: np.ndarray) -> np.ndarray:
    """Return the bucket of whole numbers below 2^31."""
    return np.searchsorted(FIRSTS, numbers, side="right") - 1


def unit(odds: np.ndarray) -> np.ndarray:
    """Return the log2 of the unit in which a pair counts gaps: about an eighth of the mean gap, at least 1."""
    return np.maximum((EVEN - odds) // 4 - 3, 0)


class Symbols(NamedTuple):
    """The non-zero symbols of a tensor: gaps and sizes |q| (n,) int64, negative (n,) bool. counts: number by class.

    The gap is the number of zeros before a symbol in its class.
    """

    counts: np.ndarray
    gaps: np.ndarray
    sizes: np.ndarray
    negative: np.ndarray

    @classmethod
    def of(cls, tokens: np.ndarray, classes: np.ndarray) -> Symbols:
        """Read tokens (T,) int32, with or without zeros at the end. classes: their sizes."""
        at = ((tokens & FILLER) + np.int64(1)).cumsum() - 1
        signed = tokens >> 8
        kept = np.flatnonzero(signed)
        at, signed = at[kept], signed[kept].astype(np.int64)
        return cls.ranked(at, np.diff(at, prepend=-1) - 1, np.where(signed & 1, -1, 1) * ((signed + 1) >> 1), classes)

    @classmethod
    def ranked(cls, ranks: np.ndarray, gaps: np.ndarray, values: np.ndarray, classes: np.ndarray) -> Symbols:
        """Divide symbols by class. ranks, gaps, values (n,): as in `Ranked` of frs/tokens.py. classes: their sizes."""
        ends = classes.cumsum()
        if len(ranks) and ranks[-1] >= ends[-1]:
            raise CodecError(f"tokens reach symbol {ranks[-1] + 1}, but the classes have {ends[-1]}")
        before = np.searchsorted(ranks, ends - classes)
        counts = np.append(before[1:], len(ranks)) - before
        used = np.flatnonzero(counts)
        firsts, gaps = before[used], gaps.copy()
        gaps[firsts] = ranks[firsts] - (ends - classes)[used]
        return cls(counts, gaps, np.abs(values).astype(np.int64), values < 0)

    def to_tokens(self, classes: np.ndarray) -> np.ndarray:
        """Return the tokens (T,) int32. Raise CorruptCache where the symbols of a class do not fit into its size."""
        used = np.flatnonzero(self.counts)
        firsts = (self.counts.cumsum() - self.counts)[used]
        zeros = self.gaps.copy()
        left = classes.copy()  # the zeros after the last symbol of each class
        left[used] -= np.add.reduceat(zeros, firsts) + self.counts[used] if len(used) else 0
        if (left < 0).any():
            raise CorruptCache("entropy-coded symbols: a class has more symbols than its map allows")
        zeros[firsts] += np.diff((left.cumsum() - left)[used], prepend=0)
        tokens = self.sizes.astype(np.int32) << 9
        tokens -= self.negative.astype(np.int32) << 8
        tokens |= (zeros & FILLER).astype(np.int32)
        long = np.flatnonzero(zeros > FILLER)
        return np.insert(tokens, np.repeat(long, zeros[long] >> 8), FILLER)

    def pairs(self, units: np.ndarray) -> np.ndarray:
        """Return the pair of each symbol. units: of each symbol's gap."""
        gap, size = (_SMALL[np.minimum(n, FIRSTS[FULL])] for n in (self.gaps >> units, self.sizes - 1))
        return gap * SIDE + size
