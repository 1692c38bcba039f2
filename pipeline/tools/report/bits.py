"""Count the bytes of coded views by tensor, by FPN level and by tenth of the FRS map.

All tokens of a tensor are compressed together, so the size of a single token is estimated. It is the information of the
token, -log2 of the frequency of its value and of its gap in the sample. The estimates are scaled to the bytes on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.codecs.base import BlockTokens, Codec
from pipeline.codecs.packing import positions
from pipeline.tools.report.sample import SampledView

TENTHS = 10
ALPHABET = 64  # larger token values count as one


@dataclass
class Bits:
    """Mean bytes per view: [tensor][level], and [tensor][tenth of the blocks, smallest map values first]."""

    by_level: dict[str, list[float]]
    by_tenth: dict[str, list[float]]


def count_bits(codec: Codec, views: Sequence[SampledView]) -> Bits:
    """Count the bytes of the views. `by_tenth` is empty for a codec that stores every position alike."""
    by_level: dict[str, list[float]] = {}
    by_tenth: dict[str, list[float]] = {}
    for what in codec.kinds:
        name = f"{what}s"
        found = [codec.block_tokens(what, view.arrays, view.levels) for view in views]
        tokens = [block for block in found if block is not None]
        if tokens:
            by_level[name], by_tenth[name] = _count_by_token(tokens, name, views)
        else:
            by_level[name] = _count_by_position(name, views)
    by_level["frs"] = _count_by_position("frs", views)
    return Bits(by_level, by_tenth)


def _count_by_position(name: str, views: Sequence[SampledView]) -> list[float]:
    """Return the mean bytes of each level if every position has the same size."""
    total = np.zeros(len(views[0].levels))
    for view in views:
        share = np.array([h * w for h, w in view.levels]) / positions(view.levels)
        total += share * view.sizes[name]
    return (total / len(views)).tolist()


def _count_by_token(
    found: Sequence[BlockTokens], name: str, views: Sequence[SampledView]
) -> tuple[list[float], list[float]]:
    """Return the mean bytes of each level and of each tenth of the blocks, from the information of the tokens."""
    levels, tenths = np.zeros(len(views[0].levels)), np.zeros(TENTHS)
    tokens = np.concatenate([one.tokens for one in found])
    cost = _information(np.minimum(tokens >> 8, ALPHABET - 1)) + _information(tokens & 255)
    parts = np.split(cost, np.cumsum([len(one.tokens) for one in found])[:-1])
    for view, one, bits in zip(views, found, parts):
        if len(one.tokens):
            scaled = bits * view.sizes[name] / bits.sum()
            np.add.at(levels, one.level, scaled)
            np.add.at(tenths, (one.richness * TENTHS + 1e-9).astype(int), scaled)
    return (levels / len(views)).tolist(), (tenths / len(views)).tolist()


def _information(values: np.ndarray) -> np.ndarray:
    """Return the bits of each value, from its frequency."""
    counts = np.bincount(values, minlength=256)
    return -np.log2(np.maximum(counts, 1) / max(1, len(values)))[values] + 1e-9
