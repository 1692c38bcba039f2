"""Where the bits of coded views go: by tensor, by level, and by how rich the teacher finds a place.

Tokens of one tensor are compressed together, so a token has no size of its own. Each is counted by the information it
carries, -log2 of how often its value and its gap occur in the sample, and these are scaled to the bytes on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.codecs.base import Codec
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.frs.map import BatchMaps, CodedMap
from pipeline.codecs.frs.tokens import block_sums, symbol_order
from pipeline.codecs.packing import positions, stack
from pipeline.records import LevelShapes
from pipeline.tools.report.sample import SampledView

TENTHS = 10
ALPHABET = 64  # token values from here on count as one


@dataclass
class Bits:
    """Mean bytes a view: [tensor][level], and [tensor][tenth of the blocks, weakest map first] of a coded cache."""

    by_level: dict[str, list[float]]
    by_tenth: dict[str, list[float]]


def count_bits(codec: Codec, views: Sequence[SampledView]) -> Bits:
    """Count where the bytes of a sample of views go."""
    depth = len(views[0].levels)
    names = [f"{what}s" for what in codec.kinds]
    by_level = {name: np.zeros(depth) for name in (*names, "frs")}
    by_tenth = {name: np.zeros(TENTHS) for name in names} if isinstance(codec, Frs) else {}
    for name in list(by_level):
        if isinstance(codec, Frs) and name in by_tenth:
            _add_tokens(codec, name, views, by_level[name], by_tenth[name])
            continue
        for view in views:  # every position costs about the same
            by_level[name] = by_level[name] + _shares(view.levels) * view.sizes[name]
    return Bits(_mean(by_level, len(views)), _mean(by_tenth, len(views)))


def _mean(sums: dict[str, np.ndarray], views: int) -> dict[str, list[float]]:
    return {name: (total / views).tolist() for name, total in sums.items()}


def _shares(levels: LevelShapes) -> np.ndarray:
    """(L,) share of each level in the positions."""
    return np.array([h * w for h, w in levels]) / positions(levels)


def _add_tokens(codec: Frs, name: str, views: Sequence[SampledView], levels: np.ndarray, tenths: np.ndarray) -> None:
    """Sum up what each level and each tenth of the blocks takes of one tensor."""
    places = [_places(codec, name, view) for view in views]
    tokens = np.concatenate([found[0] for found in places])
    cost = _information(np.minimum(tokens >> 8, ALPHABET - 1)) + _information(tokens & 255)
    for view, (own, level, tenth), bits in zip(
        views, places, np.split(cost, np.cumsum([len(p[0]) for p in places])[:-1])
    ):
        if len(own):
            scaled = bits * view.sizes[name] / bits.sum()
            np.add.at(levels, level, scaled)
            np.add.at(tenths, tenth, scaled)


def _information(values: np.ndarray) -> np.ndarray:
    counts = np.bincount(values, minlength=256)
    return -np.log2(np.maximum(counts, 1) / max(1, len(values)))[values] + 1e-9


def _places(codec: Frs, name: str, view: SampledView) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one view: its tokens that stand for a symbol, and the level and tenth of the block of each."""
    what = name.removesuffix("s")
    row = view.arrays[name]
    tokens = row[: np.flatnonzero(row)[-1] + 1] if row.any() else row[:0]
    batch = stack([{"frs": view.arrays["frs"]}], [view.levels])
    (coded,) = codec.coded_maps(batch)
    expected = torch.from_numpy(codec.tables[f"{what}_expected"])
    (weight,) = codec.weights(what, BatchMaps([coded], view.levels)).samples
    order = symbol_order(expected, weight.whole()).numpy()
    at = (np.cumsum((tokens & 255) + 1) - 1).astype(np.int64)
    real = tokens >> 8 > 0
    symbols = order[at[real]]
    level, tenth = _labels(coded, expected.shape[1])
    return tokens[real], level[symbols], tenth[symbols]


def _labels(coded: CodedMap, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Level and tenth of every symbol in the order of the list: level, plane, frequency, block."""
    levels, tenths = [], []
    for number, whole in enumerate(coded.whole()):
        sums = block_sums(whole).numpy()
        ranks = sums.argsort(kind="stable").argsort(kind="stable")
        tenths.append(np.tile((2 * ranks + 1) * TENTHS // (2 * len(sums)), rank * 16))
        levels.append(np.full(rank * 16 * len(sums), number))
    return np.concatenate(levels), np.concatenate(tenths)
