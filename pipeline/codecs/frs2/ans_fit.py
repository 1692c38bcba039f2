"""Fit the entropy coder's frequencies to the tokens of a sample of views."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.codecs.frs2.ans import STATES
from pipeline.codecs.frs2.ans_model import COUNTS, ESCAPE, EVEN, ODDS, PAIRS, AnsModel, expected_count, odds_of
from pipeline.codecs.frs2.ans_symbols import Symbols, bucket, unit
from pipeline.codecs.frs2.classes import Histogram, class_sizes

FULL = 64  # symbols of a view that may lie above class 0, on average
PRIOR = 100.0  # weight of the neighbouring tables, in symbols


def fit(samples: Sequence[tuple[np.ndarray, Histogram]]) -> AnsModel:
    """Fit to the tokens of one tensor, each with its sample's `key_histogram`."""
    keys = samples[0][1]
    for _, other in samples[1:]:
        keys = keys.plus(other)
    top = keys.highest - int(np.searchsorted(keys.counts.cumsum(), FULL * len(samples)))
    found = []
    for tokens, histogram in samples:
        sizes = class_sizes(histogram, top)
        found.append((sizes, Symbols.of(tokens, sizes)))
    total = np.sum([sizes for sizes, _ in found], axis=0)
    usual = odds_of(2 * total + 1, np.minimum(2 * sum(s.counts for _, s in found) + 1, 2 * total + 1))
    counts, pairs = np.zeros((COUNTS, COUNTS)), np.zeros((ODDS, PAIRS))
    for sizes, symbols in found:
        odds = odds_of(sizes, symbols.counts)
        tables, units = np.repeat(odds, symbols.counts), np.repeat(unit(odds), symbols.counts)
        np.add.at(pairs, (tables, symbols.pairs(units)), 1)
        present = sizes > 0
        counted = np.where(usual >= EVEN, sizes - symbols.counts, symbols.counts)
        np.add.at(counts, (expected_count(sizes, usual)[present], bucket(counted)[present]), 1)
    classes = np.concatenate([[top], usual]).astype(np.int16)
    return AnsModel(classes, whole(smooth(counts)), whole(smooth(pairs), ESCAPE))


def smooth(counts: np.ndarray) -> np.ndarray:
    """Return probabilities (T, S) of counts (T, S). A table without data follows its neighbours."""
    distance = np.abs(np.arange(len(counts))[:, None] - np.arange(len(counts)))
    near = np.where(distance > 0, 0.4**distance, 0.0) @ counts + 1e-9
    mixed = counts + PRIOR * near / near.sum(axis=1, keepdims=True)
    return mixed / mixed.sum(axis=1, keepdims=True)


def whole(probabilities: np.ndarray, escape: int | None = None) -> np.ndarray:
    """Return int16 frequencies that add up to 4096 in each row.

    No symbol gets 0. With `escape`, symbols rarer than half a 4096th get 0, and that symbol gets their share.
    """
    return np.stack([_whole_row(row * STATES, escape) for row in probabilities]).astype(np.int16)


def _whole_row(shares: np.ndarray, escape: int | None) -> np.ndarray:
    """Round shares (S,) that add up to 4096 to whole numbers that do."""
    kept = np.ones(len(shares), bool)
    if escape is not None:
        kept = (shares >= 0.5) | (np.arange(len(shares)) == escape)
        shares = np.where(kept, shares, 0)
        shares[escape] += STATES - shares.sum()
    found = np.where(kept, np.maximum(np.floor(shares), 1), 0).astype(np.int64)
    while missing := STATES - int(found.sum()):
        if missing > 0:  # raise those that lost most
            found[np.argsort(np.where(kept, found - shares, np.inf), kind="stable")[:missing]] += 1
        else:  # lower the largest
            found[np.argsort(-found, kind="stable")[: min(-missing, int((found > 1).sum()))]] -= 1
    return found
