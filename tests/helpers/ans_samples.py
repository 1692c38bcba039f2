"""Random samples for the entropy coder, and models of it."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from pipeline.codecs.frs.tokens import block_sums, log_class, symbol_order, to_tokens
from pipeline.codecs.frs2.ans_fit import fit
from pipeline.codecs.frs2.ans_model import COUNTS, ODDS, PAIRS, AnsModel
from pipeline.codecs.frs2.ans_stream import encode
from pipeline.codecs.frs2.classes import CLASSES, Histogram, class_sizes, group_histograms, key_histogram

LARGEST = 2**22 - 1


class Made(NamedTuple):
    """The tokens of one tensor of a random sample, and the histogram of its keys."""

    tokens: np.ndarray
    keys: Histogram


def make(seed: int, sizes: list[tuple[int, int]], planes: int = 3, strength: float = 0.0, wide: bool = False) -> Made:
    """Symbols of a random map. Their scale follows their key; `wide` ones have values up to the largest."""
    rng = np.random.default_rng(seed)
    maps = [torch.from_numpy(rng.integers(0, 2**30, size) * (rng.random(size) < 0.7)) for size in sizes]
    expected = rng.integers(-60, 20, (len(sizes), planes, 16)).astype(np.int16)
    groups = []
    for table, m in zip(expected, maps):
        h, w = (-(-side // 4) * 4 for side in m.shape)
        key = table.reshape(-1, 1) + (log_class(block_sums(m)) - log_class(m.sum())).numpy()
        q = rng.laplace(size=(planes * 16, h * w // 16)) * 2.0 ** ((key + strength) / 4)
        if wide:
            q = np.where(rng.random(q.shape) < 0.1, rng.choice([-LARGEST, LARGEST, 5000, -193, 192], q.shape), q)
        groups.append(torch.from_numpy(np.rint(q.clip(-LARGEST, LARGEST))).float())
    tokens = to_tokens(groups, symbol_order(torch.from_numpy(expected), maps)).numpy()
    return Made(tokens, key_histogram(group_histograms(expected), maps))


@cache
def fitted() -> AnsModel:
    return fit([make(seed, [(40, 48), (20, 24)]) for seed in range(4)])


@cache
def plain_model() -> AnsModel:
    """A model of whole numbers alone, so that its bytes are the same on every machine."""
    classes = np.concatenate([[-20], np.arange(CLASSES)[::-1]]).astype(np.int16)
    counts = np.full((COUNTS, COUNTS), 4096 // COUNTS, np.int16)
    pairs = np.zeros((ODDS, PAIRS), np.int16)
    pairs[:, :64:2], pairs[:, 255] = 100, 4096 - 3200
    return AnsModel(classes, counts, pairs)


def make_tokens(gaps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The tokens of values, each after a gap of zeros."""
    signed = np.where(values > 0, 2 * values, -2 * values - 1)
    rows = [[255] * (gap >> 8) + [z << 8 | gap & 255] for gap, z in zip(gaps.tolist(), signed.tolist())]
    return np.concatenate(rows).astype(np.int32)


def coded(made: Made, model: AnsModel) -> tuple[bytes, np.ndarray]:
    sizes = class_sizes(made.keys, model.top)
    return encode(made.tokens, sizes, model), sizes
