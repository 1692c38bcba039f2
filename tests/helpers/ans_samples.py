"""Random samples for the entropy coder, and models of it."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from pipeline.codecs.frs.order import ExpectedSizes, SymbolOrder
from pipeline.codecs.frs.tokens import to_tokens
from pipeline.codecs.frs2.ans_fit import fit
from pipeline.codecs.frs2.ans_model import COUNTS, ODDS, PAIRS, AnsModel
from pipeline.codecs.frs2.ans_stream import encode
from pipeline.codecs.frs2.classes import CLASSES, Histogram, class_sizes, group_histograms, key_histogram
from pipeline.codecs.frs2.strengths import read_strengths
from tests.helpers.symbols import coded_maps

LARGEST = 2**22 - 1


class Made(NamedTuple):
    """The tokens of one tensor of a random sample, and the histogram of its keys."""

    tokens: np.ndarray
    keys: Histogram


def make(seed: int, sizes: list[tuple[int, int]], planes: int = 3, strength: float = 0.0, wide: bool = False) -> Made:
    """Symbols of a random map. Their scale follows their key; `wide` ones have values up to the largest."""
    rng = np.random.default_rng(seed)
    maps = coded_maps(sizes, 1, rng)
    expected = rng.integers(-60, 20, (len(sizes), planes, 16)).astype(np.int16)
    levels, blocks = [], read_strengths(maps.to_bytes()[0].numpy(), maps.canvas.own[0], maps.top)
    for table, block, (h, w) in zip(expected, blocks, maps.canvas.padded):
        key = table.reshape(-1, 1) + block
        q = rng.laplace(size=(planes * 16, h * w // 16)) * 2.0 ** ((key + strength) / 4)
        if wide:
            q = np.where(rng.random(q.shape) < 0.1, rng.choice([-LARGEST, LARGEST, 5000, -193, 192], q.shape), q)
        whole = torch.from_numpy(np.rint(q.clip(-LARGEST, LARGEST))).float()
        # (R, 16, blocks) to (R, H4, W4)
        levels.append(whole.view(planes, 4, 4, h // 4, w // 4).permute(0, 3, 1, 4, 2).reshape(1, planes, h, w))
    order = SymbolOrder(ExpectedSizes.from_table(expected, torch.device("cpu")), maps.strengths)
    return Made(to_tokens(levels, order)[0].numpy(), key_histogram(group_histograms(expected), blocks))


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
