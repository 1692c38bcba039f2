"""Where the tokens of a coded sample lie: the level, and how rich the block is, of each."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.codecs.base import BlockTokens
from pipeline.codecs.frs.map import CodedMap
from pipeline.codecs.frs.tokens import FILLER, FREQUENCIES, block_sums, symbol_order


def locate_tokens(row: np.ndarray, expected: np.ndarray, frs_map: CodedMap, weight: CodedMap) -> BlockTokens:
    """Locate the tokens of one tensor of one sample.

    row (T,) int32, zeros at the end; expected (L, R, 16) of the codec's tables; weight: the tensor's weights.
    """
    tokens = row[: np.flatnonzero(row)[-1] + 1] if row.any() else row[:0]
    order = symbol_order(torch.from_numpy(expected), weight.whole()).numpy()
    at = (np.cumsum((tokens & FILLER) + 1) - 1).astype(np.int64)
    real = tokens >> 8 > 0
    symbols = order[at[real]]
    level, richness = _labels(frs_map, expected.shape[1])
    return BlockTokens(tokens[real], level[symbols], richness[symbols])


def _labels(frs_map: CodedMap, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Level and block's rank of every symbol in the order of the list: level, plane, frequency, block."""
    levels, ranks = [], []
    for number, whole in enumerate(frs_map.whole()):
        sums = block_sums(whole).numpy()
        place = sums.argsort(kind="stable").argsort(kind="stable")
        ranks.append(np.tile((2 * place + 1) / (2 * len(sums)), rank * FREQUENCIES))
        levels.append(np.full(rank * FREQUENCIES * len(sums), number))
    return np.concatenate(levels), np.concatenate(ranks)
