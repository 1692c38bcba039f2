"""Find the level and the block's richness of each token of a coded sample."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.codecs.base import BlockTokens
from pipeline.codecs.frs.map import CodedMap
from pipeline.codecs.frs.tokens import FILLER, FREQUENCIES, block_sums, symbol_order


def locate_tokens(row: np.ndarray, expected: np.ndarray, frs_map: CodedMap, weight: CodedMap) -> BlockTokens:
    """Locate the tokens of one tensor of one sample.

    row: (T,) int32, with zeros at the end. expected: (L, R, 16), from the codec's tables. weight: the tensor's weights.
    """
    tokens = row[: np.flatnonzero(row)[-1] + 1] if row.any() else row[:0]
    order = symbol_order(torch.from_numpy(expected), weight.integers()).numpy()
    at = (np.cumsum((tokens & FILLER) + 1) - 1).astype(np.int64)
    has_value = tokens >> 8 > 0
    symbols = order[at[has_value]]
    level, richness = _label_symbols(frs_map, expected.shape[1])
    return BlockTokens(tokens[has_value], level[symbols], richness[symbols])


def _label_symbols(frs_map: CodedMap, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return level and block's rank of every symbol, listed by level, plane, frequency, block."""
    levels, ranks = [], []
    for number, integers in enumerate(frs_map.integers()):
        sums = block_sums(integers).numpy()
        place = sums.argsort(kind="stable").argsort(kind="stable")
        ranks.append(np.tile((2 * place + 1) / (2 * len(sums)), rank * FREQUENCIES))
        levels.append(np.full(rank * FREQUENCIES * len(sums), number))
    return np.concatenate(levels), np.concatenate(ranks)
