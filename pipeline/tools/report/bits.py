"""Where the bits of coded views go: by tensor, by level, and by how rich the teacher finds a place.

Tokens of one tensor are compressed together, so a token has no size of its own. Each is counted by the information it
carries, -log2 of how often its value and its gap occur in the sample, and these are scaled to the bytes on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.codecs.base import BlockTokens, Codec
from pipeline.codecs.packing import positions
from pipeline.tools.report.sample import SampledView

TENTHS = 10
ALPHABET = 64  # token values from here on count as one


@dataclass
class Bits:
    """Mean bytes a view: [tensor][level], and [tensor][tenth of the blocks, weakest map first] of a coded cache."""

    by_level: dict[str, list[float]]
    by_tenth: dict[str, list[float]]


def count_bits(codec: Codec, views: Sequence[SampledView]) -> Bits:
    """Count where the bytes of these views go; `by_tenth` is empty for a codec that stores every position alike."""
    by_level: dict[str, list[float]] = {}
    by_tenth: dict[str, list[float]] = {}
    for what in codec.kinds:
        name = f"{what}s"
        found = [codec.block_tokens(what, view.arrays, view.levels) for view in views]
        tokens = [each for each in found if each is not None]
        if tokens:
            by_level[name], by_tenth[name] = _by_token(tokens, name, views)
        else:
            by_level[name] = _by_position(name, views)
    by_level["frs"] = _by_position("frs", views)
    return Bits(by_level, by_tenth)


def _by_position(name: str, views: Sequence[SampledView]) -> list[float]:
    """Mean bytes of each level where every position costs about the same."""
    total = np.zeros(len(views[0].levels))
    for view in views:
        share = np.array([h * w for h, w in view.levels]) / positions(view.levels)
        total += share * view.sizes[name]
    return (total / len(views)).tolist()


def _by_token(found: Sequence[BlockTokens], name: str, views: Sequence[SampledView]) -> tuple[list[float], list[float]]:
    """Mean bytes of each level, and of each tenth of the blocks, from the information of each token."""
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
    """Bits of each value, from how often it occurs."""
    counts = np.bincount(values, minlength=256)
    return -np.log2(np.maximum(counts, 1) / max(1, len(values)))[values] + 1e-9
