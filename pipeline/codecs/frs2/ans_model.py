"""The frequencies of the entropy coder.

A class is described by its odds, the number of its non-zero symbols over that of its zeros. They are known after the
class's count has been read, so every sample chooses its own tables: views that differ from those of the calibration
lose little. Odds are in quarter octaves, computed from whole numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.codecs.frs2.ans import STATES, Tables
from pipeline.codecs.frs2.classes import CLASSES

ODDS = 80  # tables of pairs: odds from 2^-13 to 2^7
EVEN = 52  # the table for odds of 1
PAIRS = 256
ESCAPE = 255  # the pair whose gap and size are both written in full; the encoder uses it where a frequency is 0
COUNTS = 64  # tables of counts, for expected counts from 2^-4 to 2^12, and buckets of a count
ONE = 16  # the table for an expected count of 1
_FRACTION = 24
_BOUNDS = np.array([round(2 ** (k / 4)) for k in range(240)], np.int64)


def quarter_octaves(numbers: np.ndarray) -> np.ndarray:
    """Return about 4 log2(n) of whole numbers: the number of bounds rint(2^(k/4)), k >= 0, up to n, less 1."""
    return np.searchsorted(_BOUNDS, numbers, side="right") - 1


def odds_of(sizes: np.ndarray, nonzero: np.ndarray) -> np.ndarray:
    """Return the odds 0..79 of classes with these numbers of symbols and of non-zero symbols."""
    ratio = (nonzero.astype(np.int64) << _FRACTION) // (sizes - nonzero + 1)
    return np.clip(quarter_octaves(ratio) - 4 * _FRACTION + EVEN, 0, ODDS - 1)


def expected_count(sizes: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """Return the table of counts 0..63 for classes of these sizes and usual odds."""
    return np.clip(quarter_octaves(sizes) - np.abs(odds.astype(np.int64) - EVEN) + ONE, 0, COUNTS - 1)


@dataclass(frozen=True, eq=False)
class AnsModel:
    """Tables of one tensor, for codec/. All are int16, and the rows of frequencies add up to 4096.

    classes (65,): the key of class 0, then the usual odds of each class. counts (64, 64): frequencies of a count's
    bucket, given `expected_count`. pairs (80, 256): frequencies of the pair of gap and size, given the odds.
    """

    classes: np.ndarray
    counts: np.ndarray
    pairs: np.ndarray

    @classmethod
    def from_tables(cls, tables: Mapping[str, np.ndarray], prefix: str) -> AnsModel:
        """Read `{prefix}_classes` and so on. Raise KeyError or ValueError where a table is missing or invalid."""
        classes, counts, pairs = (tables[f"{prefix}_{name}"] for name in ("classes", "counts", "pairs"))
        check_frequencies(f"{prefix}_counts", counts, (COUNTS, COUNTS), slice(None))
        check_frequencies(f"{prefix}_pairs", pairs, (ODDS, PAIRS), ESCAPE)
        odds_valid = classes.shape == (1 + CLASSES,) and 0 <= classes[1:].min() <= classes[1:].max() < ODDS
        if not odds_valid or classes.dtype != np.int16:
            raise ValueError(f"table {prefix}_classes: expected int16 ({1 + CLASSES},) with odds from 0 to {ODDS - 1}")
        return cls(classes, counts, pairs)

    def to_tables(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the tables by name. Inverse of `from_tables`."""
        return {f"{prefix}_{name}": getattr(self, name) for name in ("classes", "counts", "pairs")}

    @property
    def top(self) -> int:
        """The key of class 0."""
        return int(self.classes[0])

    @property
    def dense(self) -> np.ndarray:
        """Whether a class usually has more non-zero symbols than zeros, (CLASSES,) bool. Its zeros are then counted."""
        return self.classes[1:] >= EVEN

    def count_tables(self, sizes: np.ndarray) -> np.ndarray:
        """Return the table of `coder` for the count of each class."""
        return ODDS + expected_count(sizes, self.classes[1:])

    @cached_property
    def coder(self) -> Tables:
        """The coding tables: those of pairs, then those of counts."""
        return Tables(np.concatenate([self.pairs, np.pad(self.counts, [(0, 0), (0, PAIRS - COUNTS)])]))


def check_frequencies(name: str, table: np.ndarray, shape: tuple[int, int], needed: slice | int) -> None:
    """Raise ValueError for another shape or dtype, rows that do not add up, and 0 for a symbol that is needed."""
    if table.shape != shape or table.dtype != np.int16:
        raise ValueError(f"table {name}: expected int16 of shape {shape}, found {table.dtype} {table.shape}")
    if table.min() < 0 or (table.sum(axis=1) != STATES).any() or np.min(table[:, needed]) < 1:
        raise ValueError(f"table {name}: expected rows of frequencies >= 0 that add up to {STATES}")
