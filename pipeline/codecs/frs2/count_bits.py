"""Count about how many bits an entropy coder takes for windows of a tensor, without coding them.

Rare windows may have a hundred times the usual energy. Each window therefore has its own shares of zeros and of sizes,
as each sample has its own tables in the cache, and the step follows the mean of the windows' relative errors.

Shapes: R planes, (h, w) a window, (h4, w4) the same in whole blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs.transform import BLOCK, to_blocks

FAINTEST = 1e-12  # share of a block without weight
HALVINGS = 24


class Quantised(NamedTuple):
    """The nonzero coefficients of a window: group of R x 16, block and size |q|, (n,) each.

    strength: of each block, in the steps of the expected sizes, int64.
    """

    group: np.ndarray
    block: np.ndarray
    size: np.ndarray
    strength: np.ndarray

    @classmethod
    def of(cls, coefficients: Tensor, share: Tensor, step: float) -> Quantised:
        """Quantise coefficients (1, R, h4, w4) of a window with the weights `share` (h, w)."""
        sizes = F.pixel_unshuffle(coefficients / step, BLOCK)[0].round().abs().flatten(1)  # (16 R, blocks)
        group, block = sizes.nonzero(as_tuple=True)
        blocks = F.avg_pool2d(to_blocks(share)[None], BLOCK).flatten()
        strength = (2 * blocks.double().clamp_min(FAINTEST).log2()).round().long()
        return cls(*(part.cpu().numpy() for part in (group, block, sizes[group, block], strength)))


def find_step(windows: Sequence[tuple[np.ndarray, float]], lost: float) -> float:
    """Return the step with which windows lose this share of their energy, on average over the windows.

    windows: of each window the energies of its groups of coefficients (R, 16), and the number of coefficients of a
    group, both over the window's energy. A coefficient loses its variance, but at most a twelfth of the squared step.
    """
    low, high = -100.0, 100.0  # log2 of the step
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        shares = [np.minimum(energy, count * 4**middle / 12).sum() for energy, count in windows]
        low, high = (middle, high) if np.mean(shares) <= lost else (low, middle)
    return float(2**low)


def count_bits(coded: Quantised, expected: np.ndarray) -> float:
    """Return about the bits of a window, given the expected sizes (R, 16) of its groups.

    Coefficients of equal expected sizes are a class, as in the cache. Each class has its own share of zeros, and sizes
    that follow a geometric distribution.
    """
    groups, strength = expected.ravel().astype(np.int64), coded.strength
    groups, strength = groups - groups.min(), strength - strength.min()
    total = np.convolve(np.bincount(groups), np.bincount(strength)).astype(float)
    key = groups[coded.group] + strength[coded.block]
    nonzero = np.bincount(key, minlength=len(total)).astype(float)
    mean = np.bincount(key, coded.size, len(total)) / np.maximum(nonzero, 1)
    places = _entropy(total) - _entropy(nonzero) - _entropy(total - nonzero)
    sizes = _entropy(mean) - _entropy(mean - 1)
    return float((places + nonzero * (1 + sizes)).sum())  # 1 for the sign


def _entropy(x: np.ndarray) -> np.ndarray:
    """Return x log2(x), 0 for 0."""
    return x * np.log2(np.where(x > 0, x, 1.0))
